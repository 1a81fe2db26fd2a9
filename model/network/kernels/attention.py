"""Attention over packed rows: from the projections to the heads' outputs, and back.

Shapes: B rows, T tokens in a row, N = B * T, H heads, P = B * H, R = rope dims, r = R / 2, K = nope dims + R, V value
dims, W columns that hold the rope key among others, I queries of a chunk, J keys, x: heads times their dims.
``first_BT`` (int64): the column at which the token's document begins.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from model.network.kernels.numbers import exp, kernel, narrow, piece, rank, ranked, routine, wide, zero
from model.network.kernels.products import products


@cache
def attention(nope: int, half: int, values: int) -> Callable[..., None]:
    """The kernel for heads of these nope, r and value dims: as constants they let the compiler unroll short loops.

    ``probs_X`` gets the probabilities [P, I, J] of one ``chunk`` of queries after the other.
    """

    @kernel
    def split_and_attend(  # type: ignore[no-untyped-def]
        q_Nx, kv_Nx, rope_NR, cos_Nr, sin_Nr, first_BT, chunk, scale, q_PTK, k_PTK, v_PTV, probs_X, largest_H, out_Nx
    ):
        split_heads(nope, half, values, q_Nx, kv_Nx, rope_NR, 0, cos_Nr, sin_Nr, q_PTK, k_PTK, v_PTV)
        attend(q_PTK, k_PTK, v_PTV, first_BT, chunk, scale, probs_X, largest_H, out_Nx)

    return split_and_attend


@piece
def split_heads(
    nope: int, half: int, values: int, q_Nx: Any, kv_Nx: Any, low_NW: Any, before: int, cos_Nr: Any, sin_Nr: Any,
    q_PTK: Any, k_PTK: Any, v_PTV: Any,
) -> None:  # fmt: skip
    """From the projections to queries, keys and values, the rope parts rotated in interleaved pairs. The rope key is
    what comes after the first ``before`` columns of ``low_NW``."""
    tokens, width = q_PTK.shape[1:]
    heads = q_Nx.shape[1] // width
    for n in range(len(cos_Nr)):
        b, t = n // tokens, n % tokens
        cos_r, sin_r, rope_R, first = cos_Nr[n], sin_Nr[n], low_NW[n, before:], k_PTK[b * heads, t]
        for r in range(half):
            even, odd = wide(rope_R[2 * r]), wide(rope_R[2 * r + 1])
            first[nope + 2 * r] = narrow(even * cos_r[r] - odd * sin_r[r], first)
            first[nope + 2 * r + 1] = narrow(even * sin_r[r] + odd * cos_r[r], first)
        for h in range(heads):
            p, from_q, from_kv = b * heads + h, q_Nx[n, h * width :], kv_Nx[n, h * (nope + values) :]
            q, k, v = q_PTK[p, t], k_PTK[p, t], v_PTV[p, t]
            for i in range(nope):
                q[i], k[i] = from_q[i], from_kv[i]
            for i in range(values):
                v[i] = from_kv[nope + i]
            for r in range(half):
                even, odd = wide(from_q[nope + 2 * r]), wide(from_q[nope + 2 * r + 1])
                q[nope + 2 * r] = narrow(even * cos_r[r] - odd * sin_r[r], q)
                q[nope + 2 * r + 1] = narrow(even * sin_r[r] + odd * cos_r[r], q)
            for i in range(nope, nope + 2 * half):
                k[i] = first[i]


@piece
def attend(
    q_PTK: Any, k_PTK: Any, v_PTV: Any, first_BT: Any, chunk: int, scale: float, probs_X: Any, largest_H: Any,
    out_Nx: Any,
) -> None:  # fmt: skip
    """Heads' outputs; ``largest_H``, in the precision of sums, keeps the largest scaled scores."""
    (pairs, tokens, _), values, heads = q_PTK.shape, v_PTV.shape[2], len(largest_H)
    room_J, room_X = np.empty(tokens, largest_H.dtype), np.empty(pairs * min(chunk, tokens) * values, v_PTV.dtype)
    done = 0
    for start in range(0, tokens, chunk):
        end = min(start + chunk, tokens)
        probs_PIJ = matrices(probs_X[done:], pairs, end - start, end)
        out_PIV = matrices(room_X, pairs, end - start, values)
        done += probs_PIJ.size
        products(q_PTK[:, start:end], k_PTK[:, :end].transpose(0, 2, 1), probs_PIJ)
        softmax(probs_PIJ, first_BT, start, scale, largest_H, room_J)
        products(probs_PIJ, v_PTV[:, :end], out_PIV)
        for b in range(pairs // heads):
            for i in range(end - start):
                for h in range(heads):
                    for d in range(values):
                        out_Nx[b * tokens + start + i, h * values + d] = out_PIV[b * heads + h, i, d]


@routine
def matrices(memory_X: Any, count: int, rows: int, columns: int) -> Any:
    """An array [count, rows, columns] in the first part of the memory."""
    return memory_X[: count * rows * columns].reshape(count, rows, columns)


@piece
def softmax(scores_PIJ: Any, first_BT: Any, start: int, scale: float, largest_H: Any, room_J: Any) -> None:
    """In place: probabilities of the keys that the queries start, start + 1, ... see, 0 for the others.

    A query sees its own column and the earlier ones of its document. ``room_J`` is scratch, in the precision of sums.
    """
    pairs, queries, _ = scores_PIJ.shape
    heads, factor = len(largest_H), narrow(scale, room_J)
    for p in range(pairs):
        for i in range(queries):
            low, high, row_J = first_BT[p // heads, start + i], start + i + 1, scores_PIJ[p, i]
            seen_J = row_J[low:high]
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
            row_J[:low] = 0
            row_J[high:] = 0
            largest_H[p % heads] = max(largest_H[p % heads], largest * factor)


@cache
def attention_backward(nope: int, half: int, values: int) -> Callable[..., None]:
    """The backward of ``attention``; ``grad_rope_NR`` is in the precision of cos and sin."""

    @kernel
    def attend_and_join(  # type: ignore[no-untyped-def]
        grad_Nx, q_PTK, k_PTK, v_PTV, cos_Nr, sin_Nr, first_BT, chunk, scale, probs_X, grad_q_Nx, grad_kv_Nx,
        grad_rope_NR,
    ):  # fmt: skip
        grad_q, grad_k, grad_v = np.empty_like(q_PTK), np.empty_like(k_PTK), np.empty_like(v_PTV)
        attend_backward(grad_Nx, q_PTK, k_PTK, v_PTV, first_BT, chunk, scale, probs_X, cos_Nr, grad_q, grad_k, grad_v)
        join_heads(nope, half, values, grad_q, grad_k, grad_v, cos_Nr, sin_Nr, grad_q_Nx, grad_kv_Nx, grad_rope_NR)

    return attend_and_join


@piece
def attend_backward(
    grad_Nx: Any, q_PTK: Any, k_PTK: Any, v_PTV: Any, first_BT: Any, chunk: int, scale: float, probs_X: Any, like: Any,
    grad_q_PTK: Any, grad_k_PTK: Any, grad_v_PTV: Any,
) -> None:  # fmt: skip
    """``like`` is an array in the precision of sums."""
    (pairs, tokens, width), values, rows = q_PTK.shape, v_PTV.shape[2], len(first_BT)
    heads, most, dtype = pairs // rows, min(chunk, tokens), v_PTV.dtype
    grad_PTV = np.empty_like(v_PTV)
    for b in range(rows):
        for t in range(tokens):
            for h in range(heads):
                for d in range(values):
                    grad_PTV[b * heads + h, t, d] = grad_Nx[b * tokens + t, h * values + d]
    grad_scores_X, room_X = np.empty(pairs * most * tokens, dtype), np.empty(pairs * tokens * max(width, values), dtype)
    # The last chunk looks at every key, so it comes first and nothing starts as zeros.
    done = len(probs_X)
    for start in range((tokens - 1) // chunk * chunk, -1, -chunk):
        end = min(start + chunk, tokens)
        done -= pairs * (end - start) * end
        probs_PIJ = matrices(probs_X[done:], pairs, end - start, end)
        grad_PIJ = matrices(grad_scores_X, pairs, end - start, end)
        products(grad_PTV[:, start:end], v_PTV[:, :end].transpose(0, 2, 1), grad_PIJ)
        softmax_backward(grad_PIJ, probs_PIJ, first_BT, start, scale, like)
        products(grad_PIJ, k_PTK[:, :end], grad_q_PTK[:, start:end])
        if end == tokens:
            products(grad_PIJ.transpose(0, 2, 1), q_PTK[:, start:end], grad_k_PTK)
            products(probs_PIJ.transpose(0, 2, 1), grad_PTV[:, start:end], grad_v_PTV)
        else:
            more_PJK = matrices(room_X, pairs, end, width)
            products(grad_PIJ.transpose(0, 2, 1), q_PTK[:, start:end], more_PJK)
            add(more_PJK, grad_k_PTK)
            more_PJV = matrices(room_X, pairs, end, values)
            products(probs_PIJ.transpose(0, 2, 1), grad_PTV[:, start:end], more_PJV)
            add(more_PJV, grad_v_PTV)


@routine
def add(more_PJx: Any, sum_PTx: Any) -> None:
    """To the first rows of each matrix."""
    pairs, rows, width = more_PJx.shape
    for p in range(pairs):
        for j in range(rows):
            for d in range(width):
                sum_PTx[p, j, d] = narrow(wide(sum_PTx[p, j, d]) + wide(more_PJx[p, j, d]), sum_PTx)


@piece
def softmax_backward(grad_PIJ: Any, probs_PIJ: Any, first_BT: Any, start: int, scale: float, like: Any) -> None:
    """In place: from the gradient of the probabilities to that of the unscaled scores."""
    pairs, queries, _ = grad_PIJ.shape
    heads, factor = pairs // len(first_BT), narrow(scale, like)
    for p in range(pairs):
        for i in range(queries):
            low, high = first_BT[p // heads, start + i], start + i + 1
            grad_J, probs_J = grad_PIJ[p, i, low:high], probs_PIJ[p, i, low:high]
            along = zero(like)
            for j in range(len(grad_J)):
                along += wide(grad_J[j]) * wide(probs_J[j])
            for j in range(len(grad_J)):
                grad_J[j] = narrow(wide(probs_J[j]) * (wide(grad_J[j]) - along) * factor, grad_J)
            grad_PIJ[p, i, :low] = 0
            grad_PIJ[p, i, high:] = 0


@piece
def join_heads(
    nope: int, half: int, values: int, grad_q: Any, grad_k: Any, grad_v: Any, cos_Nr: Any, sin_Nr: Any,
    grad_q_Nx: Any, grad_kv_Nx: Any, grad_rope_NR: Any,
) -> None:  # fmt: skip
    """The backward of ``split_heads``."""
    tokens, width = grad_q.shape[1:]
    heads = grad_q_Nx.shape[1] // width
    for n in range(len(cos_Nr)):
        b, t = n // tokens, n % tokens
        cos_r, sin_r, rope_R = cos_Nr[n], sin_Nr[n], grad_rope_NR[n]
        for r in range(2 * half):
            rope_R[r] = 0
        for h in range(heads):
            p, to_q, to_kv = b * heads + h, grad_q_Nx[n, h * width :], grad_kv_Nx[n, h * (nope + values) :]
            q, k, v = grad_q[p, t], grad_k[p, t], grad_v[p, t]
            for i in range(nope):
                to_q[i], to_kv[i] = q[i], k[i]
            for i in range(values):
                to_kv[nope + i] = v[i]
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
