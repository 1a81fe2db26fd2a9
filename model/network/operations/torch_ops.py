"""The operations by torch, on any device; ``choice.Operations`` says what each does.

Shapes: as in ``choice``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rows = x.to(weight_D.dtype)
    inverse = rows.square().mean(-1).add_(eps).rsqrt_()
    return (rows * inverse.unsqueeze(-1)).mul_(weight_D).to(dtype), inverse


def rms_norm_backward(grad: Tensor, x: Tensor, weight_D: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    # The sums are matrix-vector products, one pass over memory each.
    rows_ND, inverse_N = x.flatten(0, -2).to(weight_D.dtype), inverse.flatten()
    grad_ND = grad.flatten(0, -2).to(weight_D.dtype)
    along_ND = grad_ND * rows_ND
    grad_weight_D = along_ND.T @ inverse_N
    along_N = (along_ND @ weight_D) * inverse_N.pow(3) / -len(weight_D)
    grad_x_ND = (grad_ND * weight_D).mul_(inverse_N.unsqueeze(1)).addcmul_(rows_ND, along_N.unsqueeze(1))
    return grad_x_ND.view_as(x).to(x.dtype), grad_weight_D


def add_norm(
    x: Tensor, result: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    total = x + result.to(x.dtype)
    return total, *rms_norm(total, weight_D, eps, dtype)


def add_norm_backward(
    grad_total: Tensor, grad: Tensor, total: Tensor, weight_D: Tensor, inverse: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_weight_D = rms_norm_backward(grad, total, weight_D, inverse)
    grad_x = grad_x + grad_total
    return grad_x, grad_x.to(dtype), grad_weight_D


def swiglu(h_NG: Tensor) -> Tensor:
    gate_NF, up_NF = h_NG.chunk(2, dim=-1)
    return F.silu(gate_NF) * up_NF


def swiglu_backward(grad_NF: Tensor, h_NG: Tensor) -> Tensor:
    grad_h_NG = torch.empty_like(h_NG)
    gate_NF, up_NF = h_NG.chunk(2, dim=-1)
    grad_gate_NF, grad_up_NF = grad_h_NG.chunk(2, dim=-1)
    torch.mul(F.silu(gate_NF), grad_NF, out=grad_up_NF)
    torch.ops.aten.silu_backward(grad_NF.mul_(up_NF), gate_NF, grad_input=grad_gate_NF)
    return grad_h_NG


def route(logits: Tensor, bias_E: Tensor, count: int, factor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiable by autograd: the scores and weights have gradients."""
    scores = logits.sigmoid()
    chosen = (scores.detach() + bias_E).topk(count, dim=-1, sorted=False).indices
    weights = scores.gather(-1, chosen)
    return scores, chosen, weights / (weights.sum(-1, keepdim=True) + 1e-20) * factor


def sort_by_expert(
    chosen_NK: Tensor, weights_NK: Tensor, experts: int, granule: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    k = chosen_NK.shape[1]
    order_S = chosen_NK.flatten().argsort(stable=True)
    count_E = chosen_NK.flatten().bincount(minlength=experts)
    room_E = (count_E + granule - 1) // granule * granule
    end_E = room_E.cumsum(0)
    rows = int(end_E[-1])
    shift_E = (end_E - room_E) - (count_E.cumsum(0) - count_E)
    rank_S = torch.arange(len(order_S), device=order_S.device)
    row_S = rank_S + shift_E.repeat_interleave(count_E, output_size=len(order_S))
    row_NK = torch.empty_like(order_S).scatter_(0, order_S, row_S).view(-1, k)
    token_S = order_S.new_zeros(rows).scatter_(0, row_S, order_S // k)
    weight_S = weights_NK.new_zeros(rows).scatter_(0, row_NK.flatten(), weights_NK.flatten())
    return row_NK, token_S, weight_S, end_E


def combine(y_SD: Tensor, row_NK: Tensor, weight_S: Tensor) -> Tensor:
    weights_NK = weight_S[row_NK].to(y_SD.dtype)
    return F.embedding_bag(row_NK, y_SD, mode="sum", per_sample_weights=weights_NK)


def combine_backward(grad_ND: Tensor, y_SD: Tensor, token_S: Tensor, weight_S: Tensor) -> tuple[Tensor, Tensor]:
    grad_SD = grad_ND.index_select(0, token_S)
    grad_weight_S = (grad_SD * y_SD).sum(-1, dtype=weight_S.dtype)
    return grad_SD.mul_(weight_S.unsqueeze(-1).to(grad_SD.dtype)), grad_weight_S


def target_logprobs(logits_CV: Tensor, targets_C: Tensor, logprobs_C: Tensor) -> None:
    logprobs_CV = torch.log_softmax(logits_CV, 1, dtype=logprobs_C.dtype)
    logprobs_C.copy_(logprobs_CV.gather(1, targets_C.unsqueeze(1)).squeeze(1))


def less_target(logits_CV: Tensor, targets_C: Tensor, logprobs_C: Tensor) -> Tensor:
    left_C1 = torch.expm1(logprobs_C).to(logits_CV.dtype).unsqueeze(1)
    return torch.softmax(logits_CV, 1).scatter_(1, targets_C.unsqueeze(1), left_C1)
