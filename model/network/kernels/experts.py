"""What surrounds the products of routed experts.

Shapes: N tokens, K or k experts per token, E experts, D hidden, S token-expert pairs sorted by expert, where each
expert's rows are filled up to a multiple of ``granule`` by rows without weight.
"""

from __future__ import annotations

from typing import Any

from model.network.kernels.numbers import exp, kernel, narrow, one, piece, wide, zero


@piece
def choose(scores_E: Any, bias_E: Any, factor: float, chosen_k: Any, weights_k: Any) -> None:
    """The experts with the largest score + bias, by score + bias falling, and their combine weights."""
    total = zero(scores_E)
    for i in range(len(chosen_k)):
        best = -1
        for e in range(len(scores_E)):
            taken = False
            for j in range(i):
                taken = taken or chosen_k[j] == e
            if not taken and (best < 0 or scores_E[e] + bias_E[e] > scores_E[best] + bias_E[best]):
                best = e
        chosen_k[i], weights_k[i] = best, scores_E[best]
        total += scores_E[best]
    for i in range(len(chosen_k)):
        weights_k[i] *= narrow(factor / (total + 1e-20), weights_k)


@kernel
def route(logits_NE: Any, bias_E: Any, factor: float, chosen_NK: Any, weights_NK: Any) -> None:
    """Every token's experts and their combine weights. The logits become scores."""
    tokens, experts = logits_NE.shape
    unit = one(logits_NE)
    for n in range(tokens):
        for e in range(experts):
            logits_NE[n, e] = unit / (unit + exp(-logits_NE[n, e]))
        choose(logits_NE[n], bias_E, factor, chosen_NK[n], weights_NK[n])


@kernel
def sort_by_expert(
    chosen_NK: Any, weights_NK: Any, end_E: Any, place_NK: Any, token_S: Any, weight_S: Any, granule: int
) -> int:
    """Number of rows in use; where each expert's rows end, each pair's row, and each row's token (0 in a filler) and
    weight (0). ``token_S`` and ``weight_S`` start as zeros and are long enough, ``end_E`` starts as zeros."""
    tokens, k = chosen_NK.shape
    experts = len(end_E)
    for n in range(tokens):
        for i in range(k):
            end_E[chosen_NK[n, i]] += 1
    rows = 0
    for e in range(experts):
        count = end_E[e]
        end_E[e] = rows
        rows += (count + granule - 1) // granule * granule
    for n in range(tokens):
        for i in range(k):
            expert = chosen_NK[n, i]
            row = end_E[expert]
            end_E[expert] += 1
            place_NK[n, i] = row
            token_S[row] = n
            weight_S[row] = weights_NK[n, i]
    for e in range(experts):
        end_E[e] = (end_E[e] + granule - 1) // granule * granule
    return rows


@kernel
def combine(y_SD: Any, place_NK: Any, weight_S: Any, out_ND: Any, room_D: Any) -> None:
    """Each token's rows, weighted and summed. ``room_D`` is scratch, in the precision of sums."""
    tokens, k = place_NK.shape
    width = y_SD.shape[1]
    for n in range(tokens):
        for d in range(width):
            room_D[d] = zero(room_D)
        for i in range(k):
            row = place_NK[n, i]
            weight = weight_S[row]
            for d in range(width):
                room_D[d] += wide(y_SD[row, d]) * weight
        for d in range(width):
            out_ND[n, d] = narrow(room_D[d], out_ND)


@kernel
def combine_backward(grad_ND: Any, y_SD: Any, token_S: Any, weight_S: Any, grad_y_SD: Any, grad_weight_S: Any) -> None:
    rows, width = y_SD.shape
    for s in range(rows):
        token, weight = token_S[s], weight_S[s]
        along = zero(grad_weight_S)
        for d in range(width):
            grad = wide(grad_ND[token, d])
            along += grad * wide(y_SD[s, d])
            grad_y_SD[s, d] = narrow(grad * weight, grad_y_SD)
        grad_weight_S[s] = along
