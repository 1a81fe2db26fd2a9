"""The precision of products: float32 weights, gradients and residual stream around bfloat16 products.

``with products_in(torch.bfloat16):`` around a forward makes its products bfloat16, and those of its backward. Weights
stay as they are and are cast where they are used; norms, softmax, router, sums over layers and loss stay float32.
Outside, and with ``None``, everything is computed in the dtype of the weights: generation and RL do that.

Shapes: N rows, D inputs, F outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.kernels import activation, norm
from model.kernels.numbers import array, compiled_for

# oneDNN compiles a kernel for each new shape, which takes longer than the product: row counts that change from batch to
# batch are rounded up to a multiple of this.
GRANULE = 64

_products: torch.dtype | None = None


@contextmanager
def products_in(dtype: torch.dtype | None) -> Iterator[None]:
    """Matrix products of the forwards inside, and of their backwards, in ``dtype``; None: in that of the weights."""
    global _products
    before, _products = _products, dtype
    try:
        yield
    finally:
        _products = before


def product_dtype() -> torch.dtype | None:
    """What ``products_in`` asked for, or None."""
    return _products


def whole_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as [N, D] in ``dtype``, with zero rows up to a multiple of ``GRANULE``."""
    x_ND = x.to(dtype).flatten(0, -2)
    missing = -len(x_ND) % GRANULE
    return F.pad(x_ND, (0, 0, 0, missing)) if missing else x_ND


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_FD: Tensor, bias_F: Tensor | None, dtype: torch.dtype) -> Tensor:
        x_ND, cast_FD = whole_rows(x, dtype), weight_FD.to(dtype)
        ctx.save_for_backward(x_ND, cast_FD)
        ctx.dtypes, ctx.shape, ctx.biased = (x.dtype, weight_FD.dtype), x.shape, bias_F is not None
        y_NF = x_ND @ cast_FD.T if bias_F is None else torch.addmm(bias_F.to(dtype), x_ND, cast_FD.T)
        return y_NF[: x.shape[:-1].numel()].view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_FD = ctx.saved_tensors
        of_x, of_weight = ctx.dtypes
        grad_NF = whole_rows(grads[0], x_ND.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_NF @ weight_FD)[: ctx.shape[:-1].numel()].view(ctx.shape).to(of_x)
        grad_bias_F = grad_NF.sum(0, dtype=of_weight) if ctx.biased else None
        grad_weight_FD = (grad_NF.T @ x_ND).to(of_weight) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight_FD, grad_bias_F, None


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """``layer(x)``, in the precision of products."""
    if _products is None:
        return layer(x)
    return _Linear.apply(x, layer.weight, layer.bias, _products)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        if compiled_for(x, weight_D):
            x = x.contiguous()
            y, inverse = torch.empty(x.shape, dtype=dtype), weight_D.new_empty(x.shape[:-1])
            arrays = map(array, (x.flatten(0, -2), weight_D, y.flatten(0, -2), inverse.flatten()))
            norm.rms_norm(*arrays, eps)
        else:
            rows = x.to(weight_D.dtype)
            inverse = rows.square().mean(-1).add_(eps).rsqrt_()
            y = (rows * inverse.unsqueeze(-1)).mul_(weight_D).to(dtype)
        ctx.save_for_backward(x, weight_D, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_D, inverse = ctx.saved_tensors
        if compiled_for(x, weight_D):
            grad_x, grad_weight_D = torch.empty_like(x), torch.zeros_like(weight_D)
            rows = (each.flatten(0, -2) for each in (grads[0].contiguous(), x, grad_x))
            norm.rms_norm_backward(*map(array, (*rows, weight_D, inverse.flatten(), grad_weight_D)))
            return grad_x, grad_weight_D, None, None
        # The sums are matrix-vector products, one pass over memory each.
        rows_ND, inverse_N = x.flatten(0, -2).to(weight_D.dtype), inverse.flatten()
        grad = grads[0].flatten(0, -2).to(weight_D.dtype)
        along_ND = grad * rows_ND
        grad_weight_D = along_ND.T @ inverse_N
        along_N = (along_ND @ weight_D) * inverse_N.pow(3) / -len(weight_D)
        grad_x = (grad * weight_D).mul_(inverse_N.unsqueeze(1)).addcmul_(rows_ND, along_N.unsqueeze(1))
        return grad_x.view_as(x).to(x.dtype), grad_weight_D, None, None


class RMSNorm(nn.RMSNorm):
    """torch's, computed in float32 and handed on in the precision of products."""

    def forward(self, x: Tensor) -> Tensor:
        if _products is None:
            return super().forward(x)
        return _RMSNorm.apply(x, self.weight, self.eps, _products)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, result: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        total, y = torch.empty_like(x), torch.empty_like(x, dtype=dtype)
        inverse_N = weight_D.new_empty(x.shape[:-1].numel())
        rows = (each.flatten(0, -2) for each in (x, result.contiguous(), total))
        norm.add_norm(*map(array, (*rows, weight_D, y.flatten(0, -2), inverse_N)), eps)
        ctx.save_for_backward(total, weight_D, inverse_N)
        ctx.of_result = result.dtype
        return total, y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        total, weight_D, inverse_N = ctx.saved_tensors
        grad_x, grad_result = torch.empty_like(total), torch.empty_like(total, dtype=ctx.of_result)
        grad_weight_D = torch.zeros_like(weight_D)
        rows = (each.contiguous().flatten(0, -2) for each in (*grads, total, grad_x, grad_result))
        norm.add_norm_backward(*map(array, (*rows, weight_D, inverse_N, grad_weight_D)))
        return grad_x, grad_result, grad_weight_D, None, None


def add_norm(x: Tensor, result: Tensor, norm: RMSNorm) -> tuple[Tensor, Tensor]:
    """A residual stream that takes up a sub-layer's result, and what the next sub-layer reads: ``norm`` of it."""
    if _products is None or not compiled_for(x, norm.weight):
        x = x + result.to(x.dtype)
        return x, norm(x)
    return _AddNorm.apply(x.contiguous(), result, norm.weight, norm.eps, _products)


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """``norm(x)``, computed in the weights' dtype and handed on in the precision of products."""
    y = norm(x.to(norm.weight.dtype))
    return y if _products is None else y.to(_products)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor, dtype: torch.dtype) -> Tensor:
        x_ND = x.to(dtype).flatten(0, -2)
        gate_up_GD, down = torch.cat((gate_FD, up_FD)).to(dtype), down_DF.to(dtype)
        h_NG = x_ND @ gate_up_GD.T
        act_NF = swiglu(h_NG)
        ctx.save_for_backward(x_ND, h_NG, act_NF, gate_up_GD, down)
        ctx.dtypes, ctx.shape = (x.dtype, gate_FD.dtype), x.shape
        return (act_NF @ down.T).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, h_NG, act_NF, gate_up_GD, down_DF = ctx.saved_tensors
        of_x, of_weight = ctx.dtypes
        grad_ND = grads[0].flatten(0, -2)
        grad_h_NG = swiglu_backward(grad_ND @ down_DF, h_NG)
        grad_down_DF = (grad_ND.T @ act_NF).to(of_weight)
        grad_gate_FD, grad_up_FD = (grad_h_NG.T @ x_ND).to(of_weight).chunk(2)
        grad_x = (grad_h_NG @ gate_up_GD).view(ctx.shape).to(of_x)
        return grad_x, grad_gate_FD, grad_up_FD, grad_down_DF, None


def gated_ffn(x: Tensor, gate: nn.Linear, up: nn.Linear, down: nn.Linear) -> Tensor:
    """down(silu(gate(x)) * up(x)), in the precision of products; gate and up are one product."""
    if _products is None:
        return down(F.silu(gate(x)) * up(x))
    return _SwiGLU.apply(x, gate.weight, up.weight, down.weight, _products)


def swiglu(h_NG: Tensor) -> Tensor:
    """silu(first half) * second half, [N, F]."""
    if compiled_for(h_NG):
        act_NF = h_NG.new_empty(len(h_NG), h_NG.shape[1] // 2)
        activation.swiglu(array(h_NG), array(act_NF))
        return act_NF
    gate_NF, up_NF = h_NG.chunk(2, dim=-1)
    return F.silu(gate_NF) * up_NF


def swiglu_backward(grad_NF: Tensor, h_NG: Tensor) -> Tensor:
    """The gradient of ``h_NG``; ``grad_NF`` may be overwritten."""
    grad_h_NG = torch.empty_like(h_NG)
    if compiled_for(h_NG):
        activation.swiglu_backward(array(grad_NF), array(h_NG), array(grad_h_NG))
        return grad_h_NG
    gate_NF, up_NF = h_NG.chunk(2, dim=-1)
    grad_gate_NF, grad_up_NF = grad_h_NG.chunk(2, dim=-1)
    torch.mul(F.silu(gate_NF), grad_NF, out=grad_up_NF)
    torch.ops.aten.silu_backward(grad_NF.mul_(up_NF), gate_NF, grad_input=grad_gate_NF)
    return grad_h_NG
