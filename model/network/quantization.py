"""INT4 routed experts: the numbers, their packed form, and training with the rounding in the forward
(source: the released checkpoint's format; K2-Thinking for the training).

32 neighbouring inputs of an output share a scale s = max |w| / 7, rounded to bfloat16; a weight becomes a level
q = round(w / s) in -7..7 and stands for q * s. The format would allow -8; the released weights do not use it (read off
them in llama.cpp's pull request 17064), and so what was quantised once comes out of a second quantisation unchanged.

In quantisation-aware training the forward uses q * s and the gradient goes to w as if it had been used: the
straight-through estimator. The weights that the optimizer moves, and that a checkpoint holds, stay as they are.

Shapes: O outputs, I inputs, G = I / 32 groups, i = 32 inputs of a group, E experts; more leading dimensions are allowed
everywhere.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from model.boundary.errors import MoonflowError

GROUP = 32
LEVELS = 7
PRECISIONS = ("full", "int4")
"""How a forward uses the routed experts' weights: as they are trained, or rounded to INT4."""

PACKED, SCALE, SHAPE = "weight_packed", "weight_scale", "weight_shape"
_EXPERT_WEIGHT = re.compile(r".*\.mlp\.experts\.\d+\.\w+_proj\.weight$")


def _rounded(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Levels [O, G, 32] and scales [O, G], both float32."""
    if weight_OI.shape[-1] % GROUP:
        raise MoonflowError(
            f"INT4 takes inputs in groups of {GROUP}, but a routed expert's matrix is {list(weight_OI.shape[-2:])}: "
            f"choose hidden_size and moe_intermediate_size as multiples of {GROUP}"
        )
    groups_OGi = weight_OI.detach().float().unflatten(-1, (-1, GROUP))
    scale_OG = (groups_OGi.abs().amax(-1) / LEVELS).bfloat16().float()
    scale_OG.masked_fill_(scale_OG == 0, 1.0)  # a group of zeros
    return (groups_OGi / scale_OG.unsqueeze(-1)).round_().clamp_(-LEVELS, LEVELS), scale_OG


def quantise(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Levels [O, I] in int8 and scales [O, G] in the weight's dtype, with bfloat16's values.

    Raises:
        MoonflowError: I is not a multiple of 32.
    """
    levels_OGi, scale_OG = _rounded(weight_OI)
    return levels_OGi.flatten(-2).to(torch.int8), scale_OG.to(weight_OI.dtype)


def dequantise(levels_OI: Tensor, scale_OG: Tensor) -> Tensor:
    """What the levels stand for [O, I], in the dtype of the scales, as compressed-tensors computes it."""
    return (levels_OI.unflatten(-1, (-1, GROUP)).to(scale_OG.dtype) * scale_OG.unsqueeze(-1)).flatten(-2)


def pack(levels_OI: Tensor) -> Tensor:
    """int32 [O, I / 8]: input 8 n + k is bits 4 k to 4 k + 3 of word n, as level + 8."""
    nibbles = (levels_OI + 8).to(torch.uint8).unflatten(-1, (-1, 2))
    return (nibbles[..., 0] | nibbles[..., 1] << 4).view(torch.int32)


def unpack(packed: Tensor) -> Tensor:
    """The inverse of ``pack``: int8 [O, I]."""
    octets = packed.contiguous().view(torch.uint8)
    return torch.stack((octets & 15, octets >> 4), dim=-1).flatten(-2).to(torch.int8) - 8


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_OI: Tensor) -> Tensor:
        levels_OGi, scale_OG = _rounded(weight_OI)
        return levels_OGi.mul_(scale_OG.unsqueeze(-1)).flatten(-2).to(weight_OI.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def fake_quantise(weight_OI: Tensor) -> Tensor:
    """The values that INT4 would give the weight, in its dtype; their gradient is the weight's.

    Raises:
        MoonflowError: I is not a multiple of 32.
    """
    return _StraightThrough.apply(weight_OI)


def in_precision(weight_EOI: Tensor, precision: str) -> Tensor:
    """A routed expert weight as a forward in ``precision``, one of ``PRECISIONS``, uses it."""
    return fake_quantise(weight_EOI) if precision == "int4" else weight_EOI


def is_expert_weight(name: str) -> bool:
    """Whether a released name is that of a routed expert's matrix: of what INT4 stores."""
    return _EXPERT_WEIGHT.match(name) is not None


def packed_experts(released: dict[str, Tensor]) -> dict[str, Tensor]:
    """Released tensors with each routed expert's ``weight`` as ``weight_packed``, ``weight_scale``, ``weight_shape``.

    Raises:
        MoonflowError: a tensor, which is named, has values that are not finite, or its number of inputs is not a
            multiple of 32.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in released.items():
        if not is_expert_weight(name):
            tensors[name] = value
            continue
        if not value.is_meta and not value.isfinite().all():
            raise MoonflowError(f"{name} holds values that are not finite: train again from an earlier checkpoint")
        levels, scale = quantise(value)
        prefix = name.removesuffix("weight")
        tensors[prefix + PACKED], tensors[prefix + SCALE] = pack(levels), scale
        tensors[prefix + SHAPE] = torch.tensor(value.shape, dtype=torch.int32)
    return tensors


def unpacked_experts(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The inverse of ``packed_experts``, with the values that the levels stand for; other tensors stay as they are.

    Raises:
        MoonflowError: naming ``where`` and the tensor that is missing or does not fit the others.
    """
    released: dict[str, Tensor] = {}
    for name, value in tensors.items():
        prefix, _, kind = name.rpartition(".")
        if kind in (SCALE, SHAPE) and f"{prefix}.{PACKED}" in tensors:
            continue
        if kind != PACKED:
            released[name] = value
            continue
        scale, shape = tensors.get(f"{prefix}.{SCALE}"), tensors.get(f"{prefix}.{SHAPE}")
        for part, there in ((SCALE, scale), (SHAPE, shape)):
            if there is None:
                raise MoonflowError(f"{where}: tensor {prefix}.{part} is missing; export the checkpoint again")
        assert scale is not None and shape is not None
        rows, columns = (int(size) for size in shape)
        fits = value.shape == (rows, columns // 8) and scale.shape == (rows, columns // GROUP)
        if value.dtype != torch.int32 or columns % GROUP or not fits:
            raise MoonflowError(
                f"{where}: tensor {name} is {value.dtype} {list(value.shape)} with scales {list(scale.shape)}, which "
                f"is not INT4 in groups of {GROUP} of the shape [{rows}, {columns}] that {SHAPE} gives"
            )
        released[f"{prefix}.weight"] = dequantise(unpack(value), scale)
    return released


def unpacked_shapes(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes of what ``unpacked_experts`` makes of tensors of these shapes."""
    released: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        prefix, _, kind = name.rpartition(".")
        if kind == PACKED:
            released[f"{prefix}.weight"] = (*shape[:-1], *(8 * words for words in shape[-1:]))
        elif kind not in (SCALE, SHAPE) or f"{prefix}.{PACKED}" not in shapes:
            released[name] = shape
    return released
