"""Attention over short packed rows as plain matrix products, for a CPU (source: ours).

The fused kernels of torch are built for long rows; on a CPU, products of matrices in bfloat16 are several times faster
than they are, and with a few hundred tokens to a row the scores are small. From the projections to the heads' outputs
it is one autograd node and one kernel (``model.kernels.attention``): rotation, assembly of queries and keys, scores,
softmax (float32 inside), values. Queries are taken ``CHUNK`` at a time and look at no later key.

Shapes: B rows, T tokens in a row, H heads, P = B * H, N = nope dims, R = rope dims, r = R / 2, K = N + R, V = value
dims, X = P * the scores of a row in one head, x: heads times their dims.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.documents import Documents
from model.kernels import attention as kernels
from model.kernels.numbers import Array, array
from model.precision import product_dtype

CHUNK = 128
LONGEST = 1024  # tokens of a row; scores of longer rows take more memory than a fused kernel needs time (ours)


def attends_by_products(documents: Documents) -> bool:
    """Whether products of matrices are the faster way for these rows."""
    return product_dtype() is not None and documents.device.type == "cpu" and documents.tokens <= LONGEST


def scores(tokens: int) -> int:
    """How many a row of ``tokens`` has in one head: those of later keys in a query's own chunk count."""
    return sum(((end := min(start + CHUNK, tokens)) - start) * end for start in range(0, tokens, CHUNK))


class PackedAttention(torch.autograd.Function):
    """Heads' outputs [B, T, H * V] and each head's largest scaled score [H] of projections, in the projections' dtype.

    Inputs: queries [B, T, H * K], keys and values [B, T, H * (N + V)], the rope key [B, T, R] (neither rotated), cos
    and sin [B, T, r], ``Documents.first_BT``, (H, N, V) and the softmax scale.
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
    """[B * T, x]"""
    return array(x_BTx.contiguous().flatten(0, 1))
