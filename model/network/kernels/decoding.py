"""New tokens over cached MLA latents, product by product, on the network's weights as they lie: a decode step has one
token per row of the cache, a prompt many tokens of one row.

A token's numbers come out alike, bit for bit, whatever tokens are computed with it: every product takes four tokens at
a time, every sum over features or over the context is one token's own loop. Tokens come in multiples of four.

Shapes: N tokens, D hidden, H heads, I = nope dims, R = rope dims, r = R / 2, K = I + R, V = value dims, C kv latent,
W = C + R, Q query latent, S rows of the cache, T tokens that each has room for, E experts, F expert width, k experts
per token, x: heads times their dims.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from model.network.kernels.experts import route
from model.network.kernels.numbers import exp, kernel, narrow, piece, zero

ROWS = 4


@piece
def product(x_ND: Any, weight_FD: Any, depth: int, y_NF: Any) -> None:
    """y = x @ weight.T over the first ``depth`` columns of both."""
    rows, features = y_NF.shape
    for f in range(0, features, 2):
        g = min(f + 1, features - 1)
        for n in range(0, rows, 4):
            f0 = f1 = f2 = f3 = g0 = g1 = g2 = g3 = zero(y_NF)
            for d in range(depth):
                of_f, of_g = weight_FD[f, d], weight_FD[g, d]
                x0, x1, x2, x3 = x_ND[n, d], x_ND[n + 1, d], x_ND[n + 2, d], x_ND[n + 3, d]
                f0 += x0 * of_f
                f1 += x1 * of_f
                f2 += x2 * of_f
                f3 += x3 * of_f
                g0 += x0 * of_g
                g1 += x1 * of_g
                g2 += x2 * of_g
                g3 += x3 * of_g
            y_NF[n, f], y_NF[n + 1, f], y_NF[n + 2, f], y_NF[n + 3, f] = f0, f1, f2, f3
            y_NF[n, g], y_NF[n + 1, g], y_NF[n + 2, g], y_NF[n + 3, g] = g0, g1, g2, g3


@piece
def rms_norm(x_ND: Any, weight_D: Any, eps: float, y_ND: Any) -> None:
    rows, width = y_ND.shape
    for n in range(rows):
        square = zero(y_ND)
        for d in range(width):
            square += x_ND[n, d] * x_ND[n, d]
        inverse = narrow(1 / math.sqrt(square / width + eps), y_ND)
        for d in range(width):
            y_ND[n, d] = x_ND[n, d] * inverse * weight_D[d]


@piece
def add(x_ND: Any, y_ND: Any) -> None:
    rows, width = y_ND.shape
    for n in range(rows):
        for d in range(width):
            x_ND[n, d] += y_ND[n, d]


@piece
def normed_product(x_ND: Any, norm_D: Any, weight_FD: Any, eps: float, y_NF: Any) -> None:
    """y = rms_norm(x) @ weight.T"""
    normed_ND = np.empty_like(x_ND)
    rms_norm(x_ND, norm_D, eps, normed_ND)
    product(normed_ND, weight_FD, x_ND.shape[1], y_NF)


@kernel
def logits(x_ND: Any, norm_D: Any, head_VD: Any, eps: float, y_NV: Any) -> None:
    """The last norm and the head."""
    normed_product(x_ND, norm_D, head_VD, eps, y_NV)


@piece
def rotate(x_R: Any, cos_r: Any, sin_r: Any, y_R: Any) -> None:
    """Interleaved pairs by the angles of one position."""
    for r in range(len(cos_r)):
        even, odd = x_R[2 * r], x_R[2 * r + 1]
        y_R[2 * r] = even * cos_r[r] - odd * sin_r[r]
        y_R[2 * r + 1] = even * sin_r[r] + odd * cos_r[r]


@piece
def probabilities(query_HW: Any, latents_WT: Any, length: int, scale: float, probs_HT: Any) -> None:
    """Softmax over the first ``length`` tokens of one row."""
    heads, width = query_HW.shape
    whole = width // 8 * 8
    for h in range(heads):
        for t in range(length):
            probs_HT[h, t] = 0
    for w in range(0, whole, 8):
        for h in range(heads):
            q0, q1, q2, q3 = query_HW[h, w], query_HW[h, w + 1], query_HW[h, w + 2], query_HW[h, w + 3]
            q4, q5, q6, q7 = query_HW[h, w + 4], query_HW[h, w + 5], query_HW[h, w + 6], query_HW[h, w + 7]
            for t in range(length):
                probs_HT[h, t] += (
                    q0 * latents_WT[w, t]
                    + q1 * latents_WT[w + 1, t]
                    + q2 * latents_WT[w + 2, t]
                    + q3 * latents_WT[w + 3, t]
                    + q4 * latents_WT[w + 4, t]
                    + q5 * latents_WT[w + 5, t]
                    + q6 * latents_WT[w + 6, t]
                    + q7 * latents_WT[w + 7, t]
                )
    for w in range(whole, width):
        for h in range(heads):
            for t in range(length):
                probs_HT[h, t] += query_HW[h, w] * latents_WT[w, t]
    for h in range(heads):
        largest = probs_HT[h, 0]
        for t in range(length):
            largest = max(largest, probs_HT[h, t])
        total = zero(probs_HT)
        factor = narrow(scale, probs_HT)
        for t in range(length):
            probs_HT[h, t] = exp((probs_HT[h, t] - largest) * factor)
            total += probs_HT[h, t]
        for t in range(length):
            probs_HT[h, t] /= total


@kernel
def attention(
    x_ND: Any,
    row_N: Any,
    length_N: Any,
    cos_Nr: Any,
    sin_Nr: Any,
    latents_SWT: Any,
    norm_D: Any,
    q_a_QD: Any,
    q_norm_Q: Any,
    q_b_xQ: Any,
    kv_a_WD: Any,
    kv_norm_C: Any,
    kv_b_HxC: Any,
    o_Dx: Any,
    eps: float,
    scale: float,
) -> None:
    """The first half of a layer, added to x. Each token's latents go into its row of the cache, at its length, and the
    tokens after it see them: tokens of one row come in their order."""
    rows, hidden = x_ND.shape
    heads, _, latent = kv_b_HxC.shape
    width, dtype = len(kv_a_WD), x_ND.dtype
    turned = width - latent
    nope = len(q_b_xQ) // heads - turned
    values = kv_b_HxC.shape[1] - nope
    normed_ND = np.empty_like(x_ND)
    rms_norm(x_ND, norm_D, eps, normed_ND)
    low_NQ = np.empty((rows, len(q_a_QD)), dtype)
    product(normed_ND, q_a_QD, hidden, low_NQ)
    q_Nx = np.empty((rows, len(q_b_xQ)), dtype)
    normed_product(low_NQ, q_norm_Q, q_b_xQ, eps, q_Nx)
    new_NW = np.empty((rows, width), dtype)
    product(normed_ND, kv_a_WD, hidden, new_NW)
    rms_norm(new_NW, kv_norm_C, eps, new_NW[:, :latent])
    query_HW = np.empty((heads, width), dtype)
    probs_HT = np.zeros((heads + -heads % ROWS, latents_SWT.shape[2]), dtype)
    mean_HC = np.empty((len(probs_HT), latent), dtype)
    mean_HNC = np.empty((heads, rows, latent), dtype)
    for n in range(rows):
        latents_WT, length = latents_SWT[row_N[n]], length_N[n]
        rotate(new_NW[n, latent:], cos_Nr[n], sin_Nr[n], new_NW[n, latent:])
        for w in range(width):
            latents_WT[w, length] = new_NW[n, w]
        query_HW[:] = 0
        for h in range(heads):
            q_K = q_Nx[n, h * (nope + turned) : (h + 1) * (nope + turned)]
            for i in range(nope):
                q = q_K[i]
                for c in range(latent):
                    query_HW[h, c] += q * kv_b_HxC[h, i, c]
            rotate(q_K[nope:], cos_Nr[n], sin_Nr[n], query_HW[h, latent:])
        probabilities(query_HW, latents_WT, length + 1, scale, probs_HT)
        product(probs_HT, latents_WT[:latent], length + 1, mean_HC)
        for h in range(heads):
            for c in range(latent):
                mean_HNC[h, n, c] = mean_HC[h, c]
    out_NV = np.empty((rows, values), dtype)
    out_Nx = np.empty((rows, heads * values), dtype)
    for h in range(heads):
        product(mean_HNC[h], kv_b_HxC[h, nope:], latent, out_NV)
        for n in range(rows):
            for v in range(values):
                out_Nx[n, h * values + v] = out_NV[n, v]
    product(out_Nx, o_Dx, heads * values, normed_ND)
    add(x_ND, normed_ND)


@piece
def gated(x_ND: Any, gate_FD: Any, up_FD: Any, down_DF: Any, y_ND: Any) -> None:
    """y = down(silu(gate(x)) * up(x))"""
    rows, features = len(x_ND), len(gate_FD)
    act_NF, up_NF = np.empty((rows, features), x_ND.dtype), np.empty((rows, features), x_ND.dtype)
    product(x_ND, gate_FD, x_ND.shape[1], act_NF)
    product(x_ND, up_FD, x_ND.shape[1], up_NF)
    one = narrow(1, x_ND)
    for n in range(rows):
        for f in range(features):
            act_NF[n, f] = act_NF[n, f] / (one + exp(-act_NF[n, f])) * up_NF[n, f]
    product(act_NF, down_DF, features, y_ND)


@kernel
def dense(x_ND: Any, norm_D: Any, gate_FD: Any, up_FD: Any, down_DF: Any, eps: float) -> None:
    """The second half of a dense layer, added to x."""
    normed_ND, y_ND = np.empty_like(x_ND), np.empty_like(x_ND)
    rms_norm(x_ND, norm_D, eps, normed_ND)
    gated(normed_ND, gate_FD, up_FD, down_DF, y_ND)
    add(x_ND, y_ND)


@kernel
def experts(
    x_ND: Any,
    norm_D: Any,
    router_ED: Any,
    bias_E: Any,
    gate_up_EGD: Any,
    down_EDF: Any,
    shared_gate_FD: Any,
    shared_up_FD: Any,
    shared_down_DF: Any,
    k: int,
    factor: float,
    eps: float,
) -> None:
    """The second half of a layer with a mixture of experts, added to x."""
    rows, hidden = x_ND.shape
    count_E, features, dtype = len(router_ED), down_EDF.shape[2], x_ND.dtype
    normed_ND, y_ND = np.empty_like(x_ND), np.empty_like(x_ND)
    rms_norm(x_ND, norm_D, eps, normed_ND)
    gated(normed_ND, shared_gate_FD, shared_up_FD, shared_down_DF, y_ND)
    add(x_ND, y_ND)
    scores_NE = np.empty((rows, count_E), dtype)
    product(normed_ND, router_ED, hidden, scores_NE)
    chosen_Nk, weights_Nk = np.empty((rows, k), np.int64), np.empty((rows, k), dtype)
    route(scores_NE, bias_E, factor, chosen_Nk, weights_Nk)
    # An expert's rows are filled up to whole fours by rows of an earlier one, whose results nobody takes.
    gathered_ND = np.zeros_like(x_ND)
    row_N, weight_N = np.empty(rows, np.int64), np.empty(rows, dtype)
    for e in range(count_E):
        count = 0
        for n in range(rows):
            for i in range(k):
                if chosen_Nk[n, i] == e:
                    row_N[count], weight_N[count] = n, weights_Nk[n, i]
                    gathered_ND[count] = normed_ND[n]
                    count += 1
        if count > 0:
            end = count + -count % ROWS
            gate_up_GD = gate_up_EGD[e]
            gated(gathered_ND[:end], gate_up_GD[:features], gate_up_GD[features:], down_EDF[e], y_ND[:end])
            for i in range(count):
                for d in range(hidden):
                    x_ND[row_N[i], d] += weight_N[i] * y_ND[i, d]
