"""Rotary positions, in place, as ``vllm._custom_ops`` has them.

Legend: T tokens, H heads, S head size, R rotated dims.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_embedding(
    positions: Tensor, query: Tensor, key: Tensor | None, head_size: int, cos_sin_cache: Tensor, is_neox: bool
) -> None:
    """Rotate the first R dims of every head; pairs are halves (``is_neox``) or neighbours."""
    cos_T1r, sin_T1r = cos_sin_cache[positions.flatten()].unsqueeze(1).chunk(2, dim=-1)
    rotated_dims = 2 * cos_T1r.shape[-1]
    for states in (query, key):
        if states is None:
            continue
        rotated_THR = states.view(len(cos_T1r), -1, head_size)[..., :rotated_dims]
        pairs = rotated_THR.unflatten(-1, (2, -1) if is_neox else (-1, 2))
        first, second = pairs.unbind(-2 if is_neox else -1)
        turned = (first * cos_T1r - second * sin_T1r, second * cos_T1r + first * sin_T1r)
        rotated_THR.copy_(torch.stack(turned, dim=-2 if is_neox else -1).flatten(-2))
