"""RMSNorm, and a residual stream that takes up a sub-layer's result and is normed. Shapes: N rows, D features."""

from __future__ import annotations

import math
from typing import Any

from model.network.kernels.numbers import kernel, narrow, wide, zero


@kernel
def rms_norm(x_ND: Any, weight_D: Any, y_ND: Any, inverse_N: Any, eps: float) -> None:
    """y = x / rms(x) * weight; ``inverse_N`` gets 1 / rms(x), which the backward wants. x may have more rows than that,
    and more features than weights; these are not looked at."""
    rows, width = len(inverse_N), len(weight_D)
    for n in range(rows):
        square = zero(inverse_N)
        for d in range(width):
            x = wide(x_ND[n, d])
            square += x * x
        inverse_N[n] = 1 / math.sqrt(square / width + eps)
        inverse = inverse_N[n]
        for d in range(width):
            y_ND[n, d] = narrow(wide(x_ND[n, d]) * inverse * weight_D[d], y_ND)


@kernel
def rms_norm_backward(
    grad_ND: Any, x_ND: Any, grad_x_ND: Any, weight_D: Any, inverse_N: Any, grad_weight_D: Any
) -> None:
    """``grad_weight_D`` is added to."""
    rows, width = x_ND.shape
    for n in range(rows):
        inverse = inverse_N[n]
        along = zero(inverse_N)
        for d in range(width):
            along_d = wide(grad_ND[n, d]) * wide(x_ND[n, d])
            grad_weight_D[d] += along_d * inverse
            along += along_d * weight_D[d]
        factor = narrow(along * inverse * inverse * inverse / -width, inverse_N)
        for d in range(width):
            grad = wide(grad_ND[n, d]) * weight_D[d] * inverse + wide(x_ND[n, d]) * factor
            grad_x_ND[n, d] = narrow(grad, grad_x_ND)


@kernel
def add_norm(x_ND: Any, result_ND: Any, sum_ND: Any, weight_D: Any, y_ND: Any, inverse_N: Any, eps: float) -> None:
    """sum = x + result; y = rms_norm(sum)."""
    rows, width = x_ND.shape
    for n in range(rows):
        square = zero(inverse_N)
        for d in range(width):
            x = wide(x_ND[n, d]) + wide(result_ND[n, d])
            sum_ND[n, d] = narrow(x, sum_ND)
            square += x * x
        inverse_N[n] = 1 / math.sqrt(square / width + eps)
        inverse = inverse_N[n]
        for d in range(width):
            y_ND[n, d] = narrow(wide(sum_ND[n, d]) * inverse * weight_D[d], y_ND)


@kernel
def add_norm_backward(
    grad_sum_ND: Any,
    grad_ND: Any,
    sum_ND: Any,
    grad_x_ND: Any,
    grad_result_ND: Any,
    weight_D: Any,
    inverse_N: Any,
    grad_weight_D: Any,
) -> None:
    """``grad_ND`` is that of y, ``grad_sum_ND`` what else the sum is used for; ``grad_weight_D`` is added to."""
    rows, width = sum_ND.shape
    for n in range(rows):
        inverse = inverse_N[n]
        along = zero(inverse_N)
        for d in range(width):
            along_d = wide(grad_ND[n, d]) * wide(sum_ND[n, d])
            grad_weight_D[d] += along_d * inverse
            along += along_d * weight_D[d]
        factor = narrow(along * inverse * inverse * inverse / -width, inverse_N)
        for d in range(width):
            grad = wide(grad_ND[n, d]) * weight_D[d] * inverse + wide(sum_ND[n, d]) * factor
            grad += wide(grad_sum_ND[n, d])
            grad_x_ND[n, d] = narrow(grad, grad_x_ND)
            grad_result_ND[n, d] = narrow(grad, grad_result_ND)
