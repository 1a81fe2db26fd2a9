"""The operations by kernels, on a CPU; ``choice.Operations`` says what each does.

Shapes: as in ``choice``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.network.kernels import activation, head, norm
from model.network.kernels import experts as expert_kernels
from model.network.kernels.numbers import array


def rms_norm(x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    y, inverse = torch.empty(x.shape, dtype=dtype), weight_D.new_empty(x.shape[:-1])
    norm.rms_norm(*map(array, (x.flatten(0, -2), weight_D, y.flatten(0, -2), inverse.flatten())), eps)
    return y, inverse


def rms_norm_backward(grad: Tensor, x: Tensor, weight_D: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    grad_x, grad_weight_D = torch.empty_like(x), torch.zeros_like(weight_D)
    rows = (each.flatten(0, -2) for each in (grad.contiguous(), x, grad_x))
    norm.rms_norm_backward(*map(array, (*rows, weight_D, inverse.flatten(), grad_weight_D)))
    return grad_x, grad_weight_D


def add_norm(
    x: Tensor, result: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    total, y = torch.empty_like(x), torch.empty_like(x, dtype=dtype)
    inverse = weight_D.new_empty(x.shape[:-1])
    rows = (each.flatten(0, -2) for each in (x, result.contiguous(), total))
    norm.add_norm(*map(array, (*rows, weight_D, y.flatten(0, -2), inverse.flatten())), eps)
    return total, y, inverse


def add_norm_backward(
    grad_total: Tensor, grad: Tensor, total: Tensor, weight_D: Tensor, inverse: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_result = torch.empty_like(total), torch.empty_like(total, dtype=dtype)
    grad_weight_D = torch.zeros_like(weight_D)
    rows = (each.contiguous().flatten(0, -2) for each in (grad_total, grad, total, grad_x, grad_result))
    norm.add_norm_backward(*map(array, (*rows, weight_D, inverse.flatten(), grad_weight_D)))
    return grad_x, grad_result, grad_weight_D


def swiglu(h_NG: Tensor) -> Tensor:
    act_NF = h_NG.new_empty(len(h_NG), h_NG.shape[1] // 2)
    activation.swiglu(array(h_NG), array(act_NF))
    return act_NF


def swiglu_backward(grad_NF: Tensor, h_NG: Tensor) -> Tensor:
    grad_h_NG = torch.empty_like(h_NG)
    activation.swiglu_backward(array(grad_NF), array(h_NG), array(grad_h_NG))
    return grad_h_NG


def route(logits: Tensor, bias_E: Tensor, count: int, factor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Without gradients. The scores take the memory of the logits."""
    weights = logits.new_empty(*logits.shape[:-1], count)
    chosen = torch.empty_like(weights, dtype=torch.int64)
    rows = (each.flatten(0, -2) for each in (chosen, weights))
    expert_kernels.route(array(logits.flatten(0, -2)), array(bias_E), factor, *map(array, rows))
    return logits, chosen, weights


def sort_by_expert(
    chosen_NK: Tensor, weights_NK: Tensor, experts: int, granule: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    row_NK, end_E = torch.empty_like(chosen_NK), chosen_NK.new_zeros(experts)
    token_S = chosen_NK.new_zeros(chosen_NK.numel() + experts * (granule - 1))
    weight_S = weights_NK.new_zeros(len(token_S))
    arrays = map(array, (chosen_NK, weights_NK, end_E, row_NK, token_S, weight_S))
    rows = expert_kernels.sort_by_expert(*arrays, granule)
    return row_NK, token_S[:rows], weight_S[:rows], end_E


def combine(y_SD: Tensor, row_NK: Tensor, weight_S: Tensor) -> Tensor:
    out_ND = y_SD.new_empty(len(row_NK), y_SD.shape[1])
    room_D = y_SD.new_empty(y_SD.shape[1], dtype=torch.promote_types(y_SD.dtype, torch.float32))
    expert_kernels.combine(*map(array, (y_SD, row_NK, weight_S, out_ND, room_D)))
    return out_ND


def combine_backward(grad_ND: Tensor, y_SD: Tensor, token_S: Tensor, weight_S: Tensor) -> tuple[Tensor, Tensor]:
    grad_y_SD, grad_weight_S = torch.empty_like(y_SD), torch.empty_like(weight_S)
    arrays = (grad_ND.contiguous(), y_SD, token_S, weight_S, grad_y_SD, grad_weight_S)
    expert_kernels.combine_backward(*map(array, arrays))
    return grad_y_SD, grad_weight_S


def target_logprobs(logits_CV: Tensor, targets_C: Tensor, logprobs_C: Tensor) -> None:
    head.target_logprobs(*map(array, (logits_CV, targets_C, logprobs_C)))


def less_target(logits_CV: Tensor, targets_C: Tensor, logprobs_C: Tensor) -> Tensor:
    """The result takes the memory of the logits."""
    head.target_logprobs_backward(*map(array, (logits_CV, targets_C, logprobs_C)))
    return logits_CV
