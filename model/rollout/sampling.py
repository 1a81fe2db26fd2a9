"""Sample tokens from logits, with one random generator per request (source: ours).

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.rollout.protocol import Request


def uniforms(request: Request) -> list[float]:
    """All random numbers of a request: one in [0, 1) per token, from its seed alone."""
    generator = torch.Generator().manual_seed(request.seed)
    return torch.rand(request.max_new_tokens, generator=generator, dtype=torch.float64).tolist()


def sample(logits_BV: Tensor, requests: Sequence[Request], chances: Sequence[float]) -> tuple[list[int], list[float]]:
    """Draw the next token of each row, by inverting its cumulative distribution.

    Args:
        requests: one per row.
        chances: for each row, a number in [0, 1) from `uniforms`.

    Returns:
        The tokens, and their log-probs in nats: log-softmax(logits / temperature) over the whole vocabulary, before
        top-p truncation (like SGLang's, and vLLM's processed log-probs without truncation). An importance ratio against
        the trained policy at the same temperature needs these. A greedy row has them at temperature 1.
    """
    device = logits_BV.device
    greedy = [request.greedy for request in requests]
    divisor_B1 = torch.tensor([1.0 if r.greedy else r.temperature for r in requests], device=device)[:, None]
    # The largest logit is subtracted before the division, so that rounding affects differences and not the logits: at a
    # low temperature it would change the odds.
    logprobs_BV = ((logits_BV - logits_BV.amax(-1, keepdim=True)) / divisor_B1).log_softmax(-1)
    if all(greedy):
        tokens_B1 = logits_BV.argmax(-1, keepdim=True)
    else:
        probs_BV = logprobs_BV.double().exp()
        if any(request.top_p < 1 for request in requests):
            top_p = torch.tensor([request.top_p for request in requests], device=device, dtype=torch.float64)
            _truncate(probs_BV, top_p[:, None])
        cumulative_BV = probs_BV.cumsum(-1)
        # Scaling by the last sum normalises, and keeps rounding from passing the last possible token.
        chances_B1 = torch.tensor(chances, device=device, dtype=torch.float64)[:, None] * cumulative_BV[:, -1:]
        tokens_B1 = torch.searchsorted(cumulative_BV, chances_B1, right=True).clamp(max=logits_BV.shape[1] - 1)
        greedy_B1 = torch.tensor(greedy, device=device)[:, None]
        tokens_B1 = torch.where(greedy_B1, logits_BV.argmax(-1, keepdim=True), tokens_B1)
    return tokens_B1.flatten().tolist(), logprobs_BV.gather(-1, tokens_B1).flatten().tolist()


def _truncate(probs_BV: Tensor, top_p_B1: Tensor) -> None:
    """Set all probabilities to 0, in place, but those of the fewest most likely tokens that together reach top_p."""
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    dropped_BV = (sorted_BV.cumsum(-1) - sorted_BV >= top_p_B1) & (top_p_B1 < 1)
    dropped_BV[:, 0] = False
    probs_BV.masked_fill_(torch.zeros_like(dropped_BV).scatter_(-1, order_BV, dropped_BV), 0.0)
