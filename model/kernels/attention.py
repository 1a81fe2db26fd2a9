"""What surrounds the products of attention over packed rows.

``split_heads`` goes from the projections to the queries, keys and values of every head, the rope parts rotated in
interleaved pairs; ``split_heads_backward`` takes their gradients back.

Shapes: B rows, T tokens in a row, H heads, N = nope dims, R = rope dims, r = R / 2, K = N + R, V = value dims,
I queries of a chunk, J keys. ``first_BT`` (int64): the column at which the token's document begins.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from model.kernels.numbers import exp, kernel, narrow, rank, ranked, wide, zero


@cache
def split_heads(nope: int, half: int, values: int) -> Callable[..., None]:
    """The kernel for heads of these sizes, N, r and V: as constants they let the compiler unroll its short loops."""

    @kernel
    def split(q_BTHK, kv_BTHx, rope_BTR, cos_BTr, sin_BTr, q_BHTK, k_BHTK, v_BHTV):  # type: ignore[no-untyped-def]
        rows, tokens, heads, _ = q_BTHK.shape
        for b in range(rows):
            for t in range(tokens):
                cos_r, sin_r, rope_R = cos_BTr[b, t], sin_BTr[b, t], rope_BTR[b, t]
                for h in range(heads):
                    from_q, from_kv = q_BTHK[b, t, h], kv_BTHx[b, t, h]
                    q, k, v = q_BHTK[b, h, t], k_BHTK[b, h, t], v_BHTV[b, h, t]
                    for n in range(nope):
                        q[n], k[n] = from_q[n], from_kv[n]
                    for n in range(values):
                        v[n] = from_kv[nope + n]
                    for r in range(half):
                        even, odd = wide(from_q[nope + 2 * r]), wide(from_q[nope + 2 * r + 1])
                        q[nope + 2 * r] = narrow(even * cos_r[r] - odd * sin_r[r], q)
                        q[nope + 2 * r + 1] = narrow(even * sin_r[r] + odd * cos_r[r], q)
                        even, odd = wide(rope_R[2 * r]), wide(rope_R[2 * r + 1])
                        k[nope + 2 * r] = narrow(even * cos_r[r] - odd * sin_r[r], k)
                        k[nope + 2 * r + 1] = narrow(even * sin_r[r] + odd * cos_r[r], k)

    return split


@cache
def split_heads_backward(nope: int, half: int, values: int) -> Callable[..., None]:
    """``grad_rope_BTR`` is in the precision of cos and sin."""

    @kernel
    def join(grad_q, grad_k, grad_v, cos_BTr, sin_BTr, grad_q_BTHK, grad_kv_BTHx, grad_rope_BTR):  # type: ignore[no-untyped-def]
        rows, tokens, heads, _ = grad_q_BTHK.shape
        for b in range(rows):
            for t in range(tokens):
                cos_r, sin_r, rope_R = cos_BTr[b, t], sin_BTr[b, t], grad_rope_BTR[b, t]
                for r in range(2 * half):
                    rope_R[r] = 0
                for h in range(heads):
                    q, k, v = grad_q[b, h, t], grad_k[b, h, t], grad_v[b, h, t]
                    to_q, to_kv = grad_q_BTHK[b, t, h], grad_kv_BTHx[b, t, h]
                    for n in range(nope):
                        to_q[n], to_kv[n] = q[n], k[n]
                    for n in range(values):
                        to_kv[nope + n] = v[n]
                    for r in range(half):
                        even, odd = wide(q[nope + 2 * r]), wide(q[nope + 2 * r + 1])
                        to_q[nope + 2 * r] = narrow(even * cos_r[r] + odd * sin_r[r], q)
                        to_q[nope + 2 * r + 1] = narrow(odd * cos_r[r] - even * sin_r[r], q)
                    for r in range(2 * half):
                        rope_R[r] += wide(k[nope + r])
                for r in range(half):
                    even, odd = rope_R[2 * r], rope_R[2 * r + 1]
                    rope_R[2 * r] = even * cos_r[r] + odd * sin_r[r]
                    rope_R[2 * r + 1] = odd * cos_r[r] - even * sin_r[r]

    return join


@kernel
def softmax(scores_BHIJ: Any, first_BT: Any, start: int, scale: float, largest_H: Any, room_J: Any) -> None:
    """In place: probabilities of the keys that the queries start, start + 1, ... see, 0 for the others.

    A query sees its own column and the earlier ones of its document. ``largest_H`` keeps the largest scaled score.
    ``room_J`` is scratch, in the precision of sums.
    """
    rows, heads, queries, keys = scores_BHIJ.shape
    factor = narrow(scale, room_J)
    for b in range(rows):
        for h in range(heads):
            for i in range(queries):
                low, high = first_BT[b, start + i], start + i + 1
                seen_J = scores_BHIJ[b, h, i, low:high]
                highest = rank(wide(seen_J[0]))
                for j in range(len(seen_J)):
                    highest = max(highest, rank(wide(seen_J[j])))
                largest = ranked(highest)
                total = zero(room_J)
                for j in range(len(seen_J)):
                    room_J[j] = exp((wide(seen_J[j]) - largest) * factor)
                    total += room_J[j]
                share = narrow(1 / total, room_J)
                for j in range(len(seen_J)):
                    seen_J[j] = narrow(room_J[j] * share, seen_J)
                scores_BHIJ[b, h, i, :low] = 0
                scores_BHIJ[b, h, i, high:] = 0
                largest_H[h] = max(largest_H[h], largest * factor)


@kernel
def softmax_backward(grad_BHIJ: Any, probs_BHIJ: Any, first_BT: Any, start: int, scale: float, like: Any) -> None:
    """In place: from the gradient of the probabilities to that of the unscaled scores; ``like`` as ``room_J`` above."""
    rows, heads, queries, keys = grad_BHIJ.shape
    factor = narrow(scale, like)
    for b in range(rows):
        for h in range(heads):
            for i in range(queries):
                low, high = first_BT[b, start + i], start + i + 1
                grad_J, probs_J = grad_BHIJ[b, h, i, low:high], probs_BHIJ[b, h, i, low:high]
                along = zero(like)
                for j in range(len(grad_J)):
                    along += wide(grad_J[j]) * wide(probs_J[j])
                for j in range(len(grad_J)):
                    grad_J[j] = narrow(wide(probs_J[j]) * (wide(grad_J[j]) - along) * factor, grad_J)
                grad_BHIJ[b, h, i, :low] = 0
                grad_BHIJ[b, h, i, high:] = 0


@kernel
def swap_axes(x_BMNV: Any, y_BNMV: Any) -> None:
    """Tokens before heads, or heads before tokens."""
    rows, first, second, width = x_BMNV.shape
    for b in range(rows):
        for n in range(second):
            for m in range(first):
                for v in range(width):
                    y_BNMV[b, n, m, v] = x_BMNV[b, m, n, v]
