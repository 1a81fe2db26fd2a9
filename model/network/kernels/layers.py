"""The decoder's layers in a forward without gradients, half a layer in one call, so that other threads can run Python.

``x_ND`` is the residual stream, ``normed_ND`` what the next half reads of it, in the precision of products; both are
overwritten. ``normed_ND`` may have more rows than there are tokens (see ``model.network.precision.GRANULE``); those are
zeros. Weights come as they are and are cast here.

Shapes: N tokens, B rows, T tokens in a row, D hidden, H heads, R = rope dims, r = R / 2, K = nope + rope dims, V value
dims, Q query latent, C kv latent, W = C + R, E experts, F expert width, k experts per token, S token-expert pairs
sorted by expert, x: heads times their dims.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from model.network.kernels.activation import swiglu
from model.network.kernels.attention import attend, split_heads
from model.network.kernels.experts import combine, route, sort_by_expert
from model.network.kernels.norm import add_norm, rms_norm
from model.network.kernels.numbers import kernel, narrow, piece, routine, wide
from model.network.kernels.products import product

IN_CACHE = 2**20  # scores of as many rows as these hold are made and used up before the next rows'


@routine
def cast(weight: Any, out: Any) -> None:
    """Into an array of the same size."""
    given, taken = weight.reshape(-1), out.reshape(-1)
    for n in range(len(given)):
        taken[n] = narrow(wide(given[n]), taken)


@routine
def linear(x_ND: Any, weight_FD: Any) -> Any:
    """x @ weight.T"""
    cast_FD, y_NF = np.empty(weight_FD.shape, x_ND.dtype), np.empty((len(x_ND), len(weight_FD)), x_ND.dtype)
    cast(weight_FD, cast_FD)
    product(x_ND, cast_FD.T, y_NF)
    return y_NF


@cache
def attention(nope: int, half: int, values: int) -> Callable[..., None]:
    """The kernel for heads of these nope, r and value dims. ``scores`` is how many a row has in one head."""

    @kernel
    def first_half(  # type: ignore[no-untyped-def]
        x_ND, normed_ND, q_a_QD, q_norm_Q, q_b_xQ, kv_a_WD, kv_norm_C, kv_b_xC, o_Dx, norm_D, eps,
        cos_Nr, sin_Nr, first_BT, chunk, scores, scale,
    ):  # fmt: skip
        rows, tokens = first_BT.shape
        heads, dtype = len(q_b_xQ) // (nope + 2 * half), normed_ND.dtype
        inverse_N = np.empty(len(x_ND), norm_D.dtype)
        low_NQ = linear(normed_ND, q_a_QD)
        rms_norm(low_NQ, q_norm_Q, low_NQ, inverse_N, eps)
        low_NW, low_NC = linear(normed_ND, kv_a_WD), np.zeros((len(normed_ND), len(kv_norm_C)), dtype)
        rms_norm(low_NW, kv_norm_C, low_NC, inverse_N, eps)
        q_PTK = np.empty((rows * heads, tokens, nope + 2 * half), dtype)
        k_PTK, v_PTV = np.empty_like(q_PTK), np.empty((rows * heads, tokens, values), dtype)
        split_heads(nope, half, values, linear(low_NQ, q_b_xQ), linear(low_NC, kv_b_xC), low_NW, len(kv_norm_C),
                    cos_Nr, sin_Nr, q_PTK, k_PTK, v_PTV)  # fmt: skip
        some = min(rows, max(1, IN_CACHE // (heads * scores)))
        probs_X, largest_H = np.empty(some * heads * scores, dtype), np.zeros(heads, norm_D.dtype)
        out_Nx = np.zeros((len(normed_ND), heads * values), dtype)
        for b in range(0, rows, some):
            end = min(b + some, rows)
            p, q = b * heads, end * heads
            attend(q_PTK[p:q], k_PTK[p:q], v_PTV[p:q], first_BT[b:end], chunk, scale, probs_X, largest_H,
                   out_Nx[b * tokens : end * tokens])  # fmt: skip
        add_norm(x_ND, linear(out_Nx, o_Dx), x_ND, norm_D, normed_ND, inverse_N, eps)

    return first_half


@piece
def gated(x_ND: Any, gate_FD: Any, up_FD: Any, down_DF: Any) -> Any:
    """down(silu(gate(x)) * up(x))"""
    width = len(gate_FD)
    gate_up_GD = np.empty((2 * width, x_ND.shape[1]), x_ND.dtype)
    cast(gate_FD, gate_up_GD[:width])
    cast(up_FD, gate_up_GD[width:])
    h_NG, act_NF = np.empty((len(x_ND), 2 * width), x_ND.dtype), np.empty((len(x_ND), width), x_ND.dtype)
    product(x_ND, gate_up_GD.T, h_NG)
    swiglu(h_NG, act_NF)
    return linear(act_NF, down_DF)


@kernel
def dense(x_ND: Any, normed_ND: Any, gate_FD: Any, up_FD: Any, down_DF: Any, norm_D: Any, eps: float) -> None:
    """The second half of a dense layer."""
    inverse_N = np.empty(len(x_ND), norm_D.dtype)
    add_norm(x_ND, gated(normed_ND, gate_FD, up_FD, down_DF), x_ND, norm_D, normed_ND, inverse_N, eps)


@kernel
def experts(
    x_ND: Any, normed_ND: Any, router_ED: Any, bias_E: Any, gate_up_EGD: Any, down_EDF: Any,
    shared_gate_FD: Any, shared_up_FD: Any, shared_down_DF: Any, norm_D: Any, eps: float,
    k: int, factor: float, granule: int,
) -> None:  # fmt: skip
    """The second half of a layer with a mixture of experts."""
    (count, hidden), dtype, width, experts = x_ND.shape, normed_ND.dtype, down_EDF.shape[2], len(router_ED)
    wide_ND, logits_NE = np.empty((count, hidden), norm_D.dtype), np.empty((count, experts), norm_D.dtype)
    for n in range(count):
        for d in range(hidden):
            wide_ND[n, d] = wide(normed_ND[n, d])
    product(wide_ND, router_ED.T, logits_NE)
    chosen_Nk, weights_Nk = np.empty((count, k), np.int64), np.empty((count, k), norm_D.dtype)
    route(logits_NE, bias_E, factor, chosen_Nk, weights_Nk)
    room = count * k + experts * (granule - 1)
    token_S, weight_S = np.zeros(room, np.int64), np.zeros(room, norm_D.dtype)
    end_E, place_Nk = np.zeros(experts, np.int64), np.empty((count, k), np.int64)
    rows = sort_by_expert(chosen_Nk, weights_Nk, end_E, place_Nk, token_S, weight_S, granule)
    most = end_E[0]
    for e in range(1, experts):
        most = max(most, end_E[e] - end_E[e - 1])
    x_SD, h_SG = np.empty((most, hidden), dtype), np.empty((most, 2 * width), dtype)
    act_SF, y_SD = np.empty((most, width), dtype), np.empty((rows, hidden), dtype)
    gate_up_GD, down_DF = np.empty((2 * width, hidden), dtype), np.empty((hidden, width), dtype)
    start = 0
    for e in range(experts):
        end = end_E[e]
        held = end - start
        if held > 0:
            for s in range(held):
                from_D, to_D = normed_ND[token_S[start + s]], x_SD[s]
                for d in range(hidden):
                    to_D[d] = from_D[d]
            cast(gate_up_EGD[e], gate_up_GD)
            product(x_SD[:held], gate_up_GD.T, h_SG[:held])
            swiglu(h_SG[:held], act_SF[:held])
            cast(down_EDF[e], down_DF)
            product(act_SF[:held], down_DF.T, y_SD[start:end])
        start = end
    routed_ND, room_D = np.empty((count, hidden), dtype), np.empty(hidden, norm_D.dtype)
    combine(y_SD, place_Nk, weight_S, routed_ND, room_D)
    shared_ND = gated(normed_ND, shared_gate_FD, shared_up_FD, shared_down_DF)
    for n in range(count):
        for d in range(hidden):
            routed_ND[n, d] = narrow(wide(routed_ND[n, d]) + wide(shared_ND[n, d]), routed_ND)
    inverse_N = np.empty(count, norm_D.dtype)
    add_norm(x_ND, routed_ND, x_ND, norm_D, normed_ND, inverse_N, eps)
