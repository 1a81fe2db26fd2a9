"""The precision of products: float32 weights, gradients and residual stream around bfloat16 products.

``products`` (``model.network.forward_context``) is the dtype of a forward's products and of those of its backward.
Weights stay as they are and are cast where they are used; norms, softmax, router, sums over layers and loss stay
float32. With None, everything is computed in the dtype of the weights: generation and RL do that.

Shapes: N rows, D inputs, F outputs, G = 2 F.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.network.operations.choice import operations

# oneDNN compiles a kernel for each new shape, which takes longer than the product: row counts that change from batch to
# batch are rounded up to a multiple of this.
GRANULE = 64

# With fewer rows, a CPU's matrix product takes another code path, and a row's last bits depend on how many rows there
# are: below 4 rows on AMD's processors, below 16 on Intel's.
INVARIANT_ROWS = 16


@cache
def multiplies_bfloat16() -> bool:
    """Whether this machine's CPU has instructions for products of bfloat16."""
    told = torch.cpu.get_capabilities()
    if told.get("architecture") == "x86_64":
        return bool(told.get("avx512_bf16") or told.get("amx_bf16"))
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def narrow_products(device: torch.device) -> torch.dtype:
    """The dtype of products that may be narrow: bfloat16, or float32 on a CPU without instructions for bfloat16.

    There a product of bfloat16 is computed in float32 after all, three to five times as slowly as one of float32
    (measured with oneDNN on Ice Lake).
    """
    return torch.bfloat16 if device.type != "cpu" or multiplies_bfloat16() else torch.float32


def padded_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as [N, D] in ``dtype``, with zero rows up to a multiple of ``GRANULE``."""
    x_ND = x.to(dtype).flatten(0, -2)
    missing = -len(x_ND) % GRANULE
    return F.pad(x_ND, (0, 0, 0, missing)) if missing else x_ND


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_FD: Tensor, bias_F: Tensor | None, dtype: torch.dtype) -> Tensor:
        x_ND, cast_FD = padded_rows(x, dtype), weight_FD.to(dtype)
        ctx.save_for_backward(x_ND, cast_FD)
        ctx.dtypes, ctx.shape, ctx.biased = (x.dtype, weight_FD.dtype), x.shape, bias_F is not None
        y_NF = x_ND @ cast_FD.T if bias_F is None else torch.addmm(bias_F.to(dtype), x_ND, cast_FD.T)
        return y_NF[: x.shape[:-1].numel()].view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_FD = ctx.saved_tensors
        of_x, of_weight = ctx.dtypes
        grad_NF = padded_rows(grads[0], x_ND.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_NF @ weight_FD)[: ctx.shape[:-1].numel()].view(ctx.shape).to(of_x)
        grad_bias_F = grad_NF.sum(0, dtype=of_weight) if ctx.biased else None
        grad_weight_FD = (grad_NF.T @ x_ND).to(of_weight) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight_FD, grad_bias_F, None


def linear(x: Tensor, layer: nn.Linear, products: torch.dtype | None) -> Tensor:
    """``layer(x)`` of [..., D]; the product and its backward are in ``products``, or if it is None, in the weights'
    dtype."""
    if products is None:
        return layer(x)
    return _Linear.apply(x, layer.weight, layer.bias, products)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x = x.contiguous()
        y, inverse = operations(x, weight_D).rms_norm(x, weight_D, eps, dtype)
        ctx.save_for_backward(x, weight_D, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_D, inverse = ctx.saved_tensors
        return *operations(x, weight_D).rms_norm_backward(grads[0], x, weight_D, inverse), None, None


class RMSNorm(nn.RMSNorm):
    """torch's, computed in the dtype of its weight; the result is in ``products``, or in that dtype if it is None."""

    def forward(self, x: Tensor, products: torch.dtype | None = None) -> Tensor:
        if products is None:
            return super().forward(x)
        return _RMSNorm.apply(x, self.weight, self.eps, products)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, result: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        total, y, inverse = operations(x, weight_D).add_norm(x, result, weight_D, eps, dtype)
        ctx.save_for_backward(total, weight_D, inverse)
        ctx.of_result = result.dtype
        return total, y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        total, weight_D, inverse = ctx.saved_tensors
        grad_total, grad = grads
        grad_x, grad_result, grad_weight_D = operations(total, weight_D).add_norm_backward(
            grad_total, grad, total, weight_D, inverse, ctx.of_result
        )
        return grad_x, grad_result, grad_weight_D, None, None


def add_norm(x: Tensor, result: Tensor, norm: RMSNorm, products: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """A residual stream plus a sub-layer's result, and ``norm`` of the sum, which the next sub-layer reads."""
    if products is None:
        x = x + result.to(x.dtype)
        return x, norm(x)
    return _AddNorm.apply(x.contiguous(), result, norm.weight, norm.eps, products)


def layer_norm(x: Tensor, norm: nn.LayerNorm, products: torch.dtype | None) -> Tensor:
    """``norm(x)``, computed in the weights' dtype; the result is in ``products``."""
    y = norm(x.to(norm.weight.dtype))
    return y if products is None else y.to(products)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor, dtype: torch.dtype) -> Tensor:
        x_ND = x.to(dtype).flatten(0, -2)
        gate_up_GD, down = torch.cat((gate_FD, up_FD)).to(dtype), down_DF.to(dtype)
        h_NG = x_ND @ gate_up_GD.T
        act_NF = operations(h_NG).swiglu(h_NG)
        ctx.save_for_backward(x_ND, h_NG, act_NF, gate_up_GD, down)
        ctx.dtypes, ctx.shape = (x.dtype, gate_FD.dtype), x.shape
        return (act_NF @ down.T).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, h_NG, act_NF, gate_up_GD, down_DF = ctx.saved_tensors
        of_x, of_weight = ctx.dtypes
        grad_ND = grads[0].flatten(0, -2)
        grad_h_NG = operations(h_NG).swiglu_backward(grad_ND @ down_DF, h_NG)
        grad_down_DF = (grad_ND.T @ act_NF).to(of_weight)
        grad_gate_FD, grad_up_FD = (grad_h_NG.T @ x_ND).to(of_weight).chunk(2)
        grad_x = (grad_h_NG @ gate_up_GD).view(ctx.shape).to(of_x)
        return grad_x, grad_gate_FD, grad_up_FD, grad_down_DF, None


def gated_ffn(x: Tensor, gate: nn.Linear, up: nn.Linear, down: nn.Linear, products: torch.dtype | None) -> Tensor:
    """down(silu(gate(x)) * up(x)) of [..., D]; with ``products`` given, gate and up are one matrix product."""
    if products is None:
        return down(F.silu(gate(x)) * up(x))
    return _SwiGLU.apply(x, gate.weight, up.weight, down.weight, products)
