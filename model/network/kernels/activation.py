"""SwiGLU: silu(first half) * second half. Shapes: N rows, G = 2 * F features."""

from __future__ import annotations

from typing import Any

from model.network.kernels.numbers import exp, kernel, narrow, one, wide


@kernel
def swiglu(h_NG: Any, act_NF: Any) -> None:
    rows, width = act_NF.shape
    unit = one(act_NF)
    for n in range(rows):
        for f in range(width):
            gate, up = wide(h_NG[n, f]), wide(h_NG[n, width + f])
            act_NF[n, f] = narrow(gate / (unit + exp(-gate)) * up, act_NF)


@kernel
def swiglu_backward(grad_NF: Any, h_NG: Any, grad_h_NG: Any) -> None:
    rows, width = grad_NF.shape
    unit = one(grad_NF)
    for n in range(rows):
        for f in range(width):
            gate, up, grad = wide(h_NG[n, f]), wide(h_NG[n, width + f]), wide(grad_NF[n, f])
            sigmoid = unit / (unit + exp(-gate))
            grad_h_NG[n, f] = narrow(grad * up * sigmoid * (unit + gate * (unit - sigmoid)), grad_h_NG)
            grad_h_NG[n, width + f] = narrow(grad * gate * sigmoid, grad_h_NG)
