"""Log-probabilities of given tokens without the logits of all positions in memory (source: ours).

The head is applied to some rows at a time, forward and backward; the backward computes the logits of those rows again,
so that none are kept between the two. Their sums are in the dtype of the head's weights.

Shapes: N rows, D hidden, V vocabulary, C rows of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.network.operations.choice import operations
from model.network.precision import GRANULE, padded_rows

CHUNK_ELEMENTS = 1 << 19  # logits of a chunk: in float32 they fill a core's cache and not more (ours)


class _TargetLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, dtype: torch.dtype) -> Tensor:
        hidden, head = hidden_ND.to(dtype), head_VD.to(dtype)
        if dtype != head_VD.dtype:
            hidden, targets_N = padded_rows(hidden, dtype), F.pad(targets_N, (0, -len(targets_N) % GRANULE))
        logprobs_N = head_VD.new_empty(len(targets_N))
        for rows in _chunks(len(hidden), len(head)):
            logits_CV = hidden[rows] @ head.T
            operations(logits_CV, logprobs_N).target_logprobs(logits_CV, targets_N[rows], logprobs_N[rows])
        ctx.save_for_backward(hidden, head, targets_N, logprobs_N)
        ctx.dtypes = hidden_ND.dtype, head_VD.dtype
        return logprobs_N[: len(hidden_ND)]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, head, targets_N, logprobs_N = ctx.saved_tensors
        of_hidden, of_head = ctx.dtypes
        # The gradient of a row is -grad * (p - onehot): -grad is applied to [N, D], which is smaller than [N, V].
        factor_N1 = F.pad(-grads[0], (0, len(hidden) - len(grads[0]))).unsqueeze(1)
        scaled = (hidden * factor_N1).to(head.dtype)
        grad_hidden_ND = torch.empty_like(hidden)
        grad_head_VD = torch.zeros(head.shape, dtype=of_head, device=head.device)
        for rows in _chunks(len(hidden), len(head)):
            logits_CV = hidden[rows] @ head.T
            ops = operations(logits_CV, logprobs_N)
            grad_CV = ops.less_target(logits_CV, targets_N[rows], logprobs_N[rows])
            torch.mm(grad_CV, head, out=grad_hidden_ND[rows])
            grad_head_VD += grad_CV.T @ scaled[rows]
        return (grad_hidden_ND * factor_N1)[: len(grads[0])].to(of_hidden), grad_head_VD, None, None


def _chunks(rows: int, vocabulary: int) -> Iterator[slice]:
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def target_logprobs(
    hidden_ND: Tensor, head: nn.Linear, targets_N: Tensor, products: torch.dtype | None = None
) -> Tensor:
    """log p(target) [N] in nats under ``softmax(head(hidden))``, in the dtype of the head's weights; the head's
    products are in ``products``, or in that dtype where it is None.

    Raises:
        IndexError: a target outside the vocabulary.
    """
    if targets_N.is_cpu and len(targets_N):  # a kernel does not check its indices
        lowest, highest = map(int, targets_N.aminmax())
        if lowest < 0 or highest >= len(head.weight):
            raise IndexError(f"targets from {lowest} to {highest} for a vocabulary of {len(head.weight)}")
    return _TargetLogprobs.apply(hidden_ND, head.weight, targets_N, products or head.weight.dtype)
