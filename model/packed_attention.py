"""Attention over short packed rows as plain matrix products, for training on a CPU (source: ours).

The fused kernels of torch are built for long rows; on a CPU, products of matrices in bfloat16 are several times faster
than they are, and with a few hundred tokens to a row the scores are small. From the projections to the heads' outputs
it is one autograd node: rotation, assembly of queries and keys, scores, softmax (float32 inside), values. Queries are
taken ``CHUNK`` at a time and look at no later key; what surrounds the products is in ``model.kernels.attention``.

Shapes: B rows, T tokens in a row, H heads, N = nope dims, R = rope dims, r = R / 2, K = N + R, V = value dims.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.documents import Documents
from model.kernels import attention as kernels
from model.kernels.numbers import array
from model.precision import product_dtype

CHUNK = 128
LONGEST = 1024  # tokens of a row; scores of longer rows take more memory than a fused kernel needs time (ours)


def attends_by_products(documents: Documents) -> bool:
    """Whether products of matrices are the faster way for these rows."""
    return product_dtype() is not None and documents.device.type == "cpu" and documents.tokens <= LONGEST


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
        q_BHTK, k_BHTK = (q_BTx.new_empty(rows, heads, tokens, width // heads) for _ in range(2))
        v_BHTV, out_BHTV = (q_BTx.new_empty(rows, heads, tokens, values) for _ in range(2))
        per_head = (x.contiguous().unflatten(-1, (heads, -1)) for x in (q_BTx, kv_BTx))
        kernels.split_heads(nope, cos_BTr.shape[-1], values)(
            *map(array, (*per_head, rope_BTR.contiguous(), cos_BTr, sin_BTr, q_BHTK, k_BHTK, v_BHTV))
        )
        q, k, v = (x.flatten(0, 1) for x in (q_BHTK, k_BHTK, v_BHTV))
        largest_H, room_T = cos_BTr.new_full((heads,), -torch.inf), cos_BTr.new_empty(tokens)
        probs = []
        for start, end in _chunks(tokens):
            scores = torch.bmm(q[:, start:end], k[:, :end].mT)
            scores_BHIJ = array(scores.unflatten(0, (rows, heads)))
            kernels.softmax(scores_BHIJ, array(first_BT), start, scale, array(largest_H), array(room_T))
            out_BHTV[:, :, start:end] = torch.bmm(scores, v[:, :end]).unflatten(0, (rows, heads))
            probs.append(scores)
        ctx.save_for_backward(q, k, v, cos_BTr, sin_BTr, first_BT, *probs)
        ctx.shape, ctx.scale = (rows, heads, tokens, nope, values), scale
        ctx.mark_non_differentiable(largest_H)
        return _swapped(out_BHTV).flatten(2), largest_H

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, cos_BTr, sin_BTr, first_BT, *probs = ctx.saved_tensors
        rows, heads, tokens, nope, values = ctx.shape
        grad_out = _swapped(grads[0].contiguous().view(rows, tokens, heads, values)).flatten(0, 1)
        grad_q, grad_k, grad_v = (torch.empty_like(x) for x in (q, k, v))
        for (start, end), prob in reversed(list(zip(_chunks(tokens), probs, strict=True))):
            out = grad_out[:, start:end]
            grad_scores = torch.bmm(out, v[:, :end].mT)
            chunk_BHIJ = (array(x.unflatten(0, (rows, heads))) for x in (grad_scores, prob))
            kernels.softmax_backward(*chunk_BHIJ, array(first_BT), start, ctx.scale, array(cos_BTr))
            grad_q[:, start:end] = torch.bmm(grad_scores, k[:, :end])
            for grad, left, right in ((grad_k, grad_scores, q[:, start:end]), (grad_v, prob, out)):
                if end == tokens:  # the last chunk looks at every key, so it comes first and nothing starts as zeros
                    torch.bmm(left.mT, right, out=grad)
                else:
                    grad[:, :end] += torch.bmm(left.mT, right)
        grad_q_BTHK = q.new_empty(rows, tokens, heads, q.shape[2])
        grad_kv_BTHx = q.new_empty(rows, tokens, heads, nope + values)
        grad_rope_BTR = cos_BTr.new_empty(rows, tokens, q.shape[2] - nope)
        per_head = (x.unflatten(0, (rows, heads)) for x in (grad_q, grad_k, grad_v))
        kernels.split_heads_backward(nope, cos_BTr.shape[-1], values)(
            *map(array, (*per_head, cos_BTr, sin_BTr, grad_q_BTHK, grad_kv_BTHx, grad_rope_BTR))
        )
        grads_of_inputs = grad_q_BTHK.flatten(2), grad_kv_BTHx.flatten(2), grad_rope_BTR.to(q.dtype)
        return *grads_of_inputs, None, None, None, None, None


def _chunks(tokens: int) -> list[tuple[int, int]]:
    return [(start, min(start + CHUNK, tokens)) for start in range(0, tokens, CHUNK)]


def _swapped(x_BMNV: Tensor) -> Tensor:
    """Tokens before heads, or heads before tokens, in memory."""
    rows, first, second, width = x_BMNV.shape
    y_BNMV = x_BMNV.new_empty(rows, second, first, width)
    kernels.swap_axes(array(x_BMNV), array(y_BNMV))
    return y_BNMV
