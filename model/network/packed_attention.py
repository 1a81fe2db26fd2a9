"""Attention over short packed rows as plain matrix products, for a CPU (source: ours).

The fused kernels of torch are built for long rows; on a CPU, products of matrices in bfloat16 are several times faster
than they are, and with a few hundred tokens to a row the scores are small. From the projections to the heads' outputs
it is one autograd node and one kernel (``model.network.kernels.attention``): rotation, assembly of queries and keys,
scores, softmax (float32 inside), values. Queries are taken ``CHUNK`` at a time and look at no later key.

Shapes: B rows, T tokens in a row, H heads, P = B * H, I = nope dims, R = rope dims, r = R / 2, K = I + R, V = value
dims, X = P * the scores of a row in one head, x: heads times their dims.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.network.kernels import attention as kernels
from model.network.kernels.numbers import Array, array

CHUNK = 128
LONGEST = 1024  # tokens of a row; for longer rows the scores take so much memory that a fused kernel is better (ours)


def scores(tokens: int) -> int:
    """How many scores a row of ``tokens`` has in one head, including those of later keys in a query's own chunk."""
    return sum(((end := min(start + CHUNK, tokens)) - start) * end for start in range(0, tokens, CHUNK))


class PackedAttention(torch.autograd.Function):
    """Heads' outputs [B, T, H * V] and each head's largest scaled score [H] of projections, in the projections' dtype.

    Inputs: queries [B, T, H * K], keys and values [B, T, H * (I + V)], the rope key [B, T, R] (neither rotated), cos
    and sin [B, T, r], ``Documents.first_BT``, (H, I, V) and the softmax scale.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_BTx: Tensor,
        kv_BTx: Tensor,
        rope_BTR: Tensor,
        cos_BTr: Tensor,
        sin_BTr: Tensor,
        first_BT: Tensor,
        sizes: tuple[int, int, int],
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        heads, nope, values = sizes
        rows, tokens, width = q_BTx.shape
        pairs = rows * heads
        q_PTK, k_PTK = q_BTx.new_empty(2, pairs, tokens, width // heads)
        v_PTV, out_BTx = q_BTx.new_empty(pairs, tokens, values), q_BTx.new_empty(rows, tokens, heads * values)
        probs_X = q_BTx.new_empty(pairs * scores(tokens))
        largest_H = cos_BTr.new_full((heads,), -torch.inf)
        kernels.attention(nope, cos_BTr.shape[-1], values)(
            *map(_rows, (q_BTx, kv_BTx, rope_BTR, cos_BTr, sin_BTr)), array(first_BT), CHUNK, scale,
            *map(array, (q_PTK, k_PTK, v_PTV, probs_X, largest_H)), _rows(out_BTx),
        )  # fmt: skip
        ctx.save_for_backward(q_PTK, k_PTK, v_PTV, cos_BTr, sin_BTr, first_BT, probs_X)
        ctx.nope, ctx.scale = nope, scale
        ctx.mark_non_differentiable(largest_H)
        return out_BTx, largest_H

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_PTK, k_PTK, v_PTV, cos_BTr, sin_BTr, first_BT, probs_X = ctx.saved_tensors
        (rows, tokens), (pairs, _, values), nope = first_BT.shape, v_PTV.shape, ctx.nope
        heads, width = pairs // rows, q_PTK.shape[2]
        grad_q_BTx = q_PTK.new_empty(rows, tokens, heads * width)
        grad_kv_BTx = q_PTK.new_empty(rows, tokens, heads * (nope + values))
        grad_rope_BTR = cos_BTr.new_empty(rows, tokens, width - nope)
        kernels.attention_backward(nope, cos_BTr.shape[-1], values)(
            _rows(grads[0]), *map(array, (q_PTK, k_PTK, v_PTV)), *map(_rows, (cos_BTr, sin_BTr)), array(first_BT),
            CHUNK, ctx.scale, array(probs_X), *map(_rows, (grad_q_BTx, grad_kv_BTx, grad_rope_BTR)),
        )  # fmt: skip
        return grad_q_BTx, grad_kv_BTx, grad_rope_BTR.to(q_PTK.dtype), None, None, None, None, None


def _rows(x_BTx: Tensor) -> Array:
    """The memory of x as [B * T, x]."""
    return array(x_BTx.contiguous().flatten(0, 1))
