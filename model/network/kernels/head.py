"""What surrounds the head's products. Shapes: C rows of a chunk, V vocabulary."""

from __future__ import annotations

import math
from typing import Any

from model.network.kernels.numbers import exp, kernel, narrow, rank, ranked, wide, zero


@kernel
def target_logprobs(logits_CV: Any, targets_C: Any, logprobs_C: Any) -> None:
    """log softmax(logits)[target]."""
    rows, vocabulary = logits_CV.shape
    for c in range(rows):
        highest = rank(wide(logits_CV[c, 0]))
        for v in range(vocabulary):
            highest = max(highest, rank(wide(logits_CV[c, v])))
        largest = ranked(highest)
        total = zero(logprobs_C)
        for v in range(vocabulary):
            total += exp(wide(logits_CV[c, v]) - largest)
        logprobs_C[c] = wide(logits_CV[c, targets_C[c]]) - largest - math.log(total)


@kernel
def target_logprobs_backward(logits_CV: Any, targets_C: Any, logprobs_C: Any) -> None:
    """In place: softmax(logits), less 1 at the target.

    What is left of a well-known target is small: from its wide log-prob, not from a difference of narrow numbers.
    """
    rows, vocabulary = logits_CV.shape
    for c in range(rows):
        target = targets_C[c]
        log_total = wide(logits_CV[c, target]) - logprobs_C[c]
        for v in range(vocabulary):
            logits_CV[c, v] = narrow(exp(wide(logits_CV[c, v]) - log_total), logits_CV)
        logits_CV[c, target] = narrow(math.expm1(logprobs_C[c]), logits_CV)
