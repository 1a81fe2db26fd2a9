"""Attention over short packed rows as plain matrix products, for training in bfloat16 (source: ours).

The fused kernels of torch are built for long rows; on a CPU, products of matrices in bfloat16 are several times faster
than they are, and with a few hundred tokens to a row the scores are small. From the projections to the heads' outputs
it is one autograd node: rotation, assembly of queries and keys, scores, softmax (float32 inside), values. Queries are
taken ``CHUNK`` at a time and look at no later key.

Shapes: B rows, T tokens in a row, H heads, N = nope dims, R = rope dims, K = N + R, V = value dims, X = B * H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.documents import Documents
from model.precision import product_dtype

CHUNK = 128
LONGEST = 1024  # tokens of a row; scores of longer rows take more memory than a fused kernel needs time (ours)


def looks(documents: Documents, heads: int) -> Documents | Tensor:
    """What attention takes: the ``score_bias`` where products of matrices are the faster way, else the documents."""
    dtype = product_dtype()
    if dtype is None or documents.tokens > LONGEST:
        return documents
    return documents.score_bias(heads, dtype)


def _turn(x: Tensor, turn: Tensor) -> Tensor:
    """Interleaved pairs of x [..., R] times unit complex numbers [..., R/2], in the precision of the latter."""
    pairs = torch.view_as_complex(x.to(turn.dtype.to_real()).unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(-2)


class PackedAttention(torch.autograd.Function):
    """Heads' outputs [B, T, H * V] and each head's largest score [H] of projections, in the projections' dtype.

    Inputs: queries [B, T, H * K], keys and values [B, T, H * (N + V)], the rope key [B, T, R] (neither rotated), the
    rotation [B, T, R/2] as unit complex numbers, ``Documents.score_bias``, (H, N, V), the softmax scale, and
    ``exact_above``: while no Cauchy-Schwarz bound passes it, the heads' bounds are returned, not their largest scores.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_BTx: Tensor,
        kv_BTx: Tensor,
        rope_BTR: Tensor,
        turn_BTr: Tensor,
        bias_BHTT: Tensor,
        sizes: tuple[int, int, int],
        scale: float,
        exact_above: float,
    ) -> tuple[Tensor, Tensor]:
        heads, nope, values = sizes
        rows, tokens, _ = q_BTx.shape
        turn_B1Tr = turn_BTr.unsqueeze(1)
        from_q = q_BTx.unflatten(-1, (heads, -1)).transpose(1, 2)
        from_kv = kv_BTx.unflatten(-1, (heads, -1)).transpose(1, 2)
        q, k = (torch.empty(from_q.shape, dtype=q_BTx.dtype, device=q_BTx.device) for _ in range(2))
        q[..., :nope] = from_q[..., :nope]
        q[..., nope:] = _turn(from_q[..., nope:], turn_B1Tr)
        k[..., :nope] = from_kv[..., :nope]
        k[..., nope:] = _turn(rope_BTR.unsqueeze(1), turn_B1Tr)
        q_XTK, k_XTK = q.flatten(0, 1), k.flatten(0, 1)
        v_XTV = from_kv[..., nope:].reshape(rows * heads, tokens, values)
        bias_XTT = bias_BHTT.flatten(0, 1)
        out_XTV, probs, largest = torch.empty_like(v_XTV), [], []
        bound_X = torch.linalg.vector_norm(q_XTK, dim=-1).amax(1) * torch.linalg.vector_norm(k_XTK, dim=-1).amax(1)
        bound_X = bound_X.float() * scale
        exact = bool((bound_X > exact_above).any())
        for start in range(0, tokens, CHUNK):
            end = min(start + CHUNK, tokens)
            scores = torch.baddbmm(bias_XTT[:, start:end, :end], q_XTK[:, start:end], k_XTK[:, :end].mT, alpha=scale)
            if exact:
                largest.append(scores.amax((1, 2)))
            probs.append(scores.softmax(-1))
            out_XTV[:, start:end] = torch.bmm(probs[-1], v_XTV[:, :end])
        ctx.save_for_backward(q_XTK, k_XTK, v_XTV, turn_B1Tr, *probs)
        ctx.sizes, ctx.scale = sizes, scale
        largest_X = torch.stack(largest).amax(0).float() if exact else bound_X
        largest_H = largest_X.view(rows, heads).amax(0)
        ctx.mark_non_differentiable(largest_H)
        return out_XTV.view(rows, heads, tokens, values).transpose(1, 2).flatten(2), largest_H

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_XTK, k_XTK, v_XTV, turn_B1Tr, *probs = ctx.saved_tensors
        (heads, nope, values), scale = ctx.sizes, ctx.scale
        tokens = q_XTK.shape[1]
        grad_XTV = grads[0].unflatten(-1, (heads, values)).transpose(1, 2).flatten(0, 1)
        grad_q, grad_k, grad_v = torch.empty_like(q_XTK), torch.zeros_like(k_XTK), torch.zeros_like(v_XTV)
        for number, prob in enumerate(probs):
            start, end = number * CHUNK, min((number + 1) * CHUNK, tokens)
            out = grad_XTV[:, start:end]
            grad_v[:, :end] += torch.bmm(prob.mT, out)
            grad_scores = torch.ops.aten._softmax_backward_data(torch.bmm(out, v_XTV[:, :end].mT), prob, -1, prob.dtype)
            grad_q[:, start:end] = torch.bmm(grad_scores, k_XTK[:, :end])
            grad_k[:, :end] += torch.bmm(grad_scores.mT, q_XTK[:, start:end])
        grad_q, grad_k, grad_v = (x.unflatten(0, (-1, heads)) for x in (grad_q.mul_(scale), grad_k.mul_(scale), grad_v))
        back_B1Tr = turn_B1Tr.conj()
        grad_q[..., nope:] = _turn(grad_q[..., nope:], back_B1Tr)
        grad_rope_BTR = _turn(grad_k[..., nope:].sum(1, dtype=turn_B1Tr.dtype.to_real()), back_B1Tr.squeeze(1)).to(
            grad_k.dtype
        )
        grad_kv = torch.cat((grad_k[..., :nope], grad_v), dim=-1)
        return (
            grad_q.transpose(1, 2).flatten(2),
            grad_kv.transpose(1, 2).flatten(2),
            grad_rope_BTR,
            None,
            None,
            None,
            None,
            None,
        )
