"""Our parameters under the names of the released checkpoint (source: the released checkpoint).

The names are the same except for the routed experts. We stack the experts of a layer, ``gate_up_proj`` [E, 2F, D] and
``down_proj`` [E, D, F]; the released checkpoint has three matrices for each expert, ``gate_proj`` [F, D], ``up_proj``
[F, D] and ``down_proj`` [D, F].

Shapes: E routed experts of a layer, F width of one, D hidden.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

_GATE_UP, _DOWN = ".mlp.experts.gate_up_proj", ".mlp.experts.down_proj"
_EXPERT = re.compile(r"\.mlp\.experts\.(\d+)\.")

CORRECTION_BIAS = "e_score_correction_bias"
"""Ends the names of the parameters that are float32 in every checkpoint: their steps are too small for bfloat16."""

# What ``save_pretrained`` of transformers 5 writes -> the released name.
_TRANSFORMERS_NAMES = (
    (re.compile(r"^language_model\.model\.blocks\."), "language_model.model.layers."),
    (re.compile(r"^model\.mm_projector\."), "mm_projector."),
    (re.compile(r"^vision_tower\.encoder\.patch_embed\."), "vision_tower.patch_embed."),
)


def released_views(stacked: Mapping[str, Tensor], first: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of a model's ``state_dict`` under its released name; an expert's matrices are views of the stack.

    They come one by one, so that a config that asks for millions of experts does not fill the memory with names.

    Args:
        first: the number of the first expert in the stacks, where ranks divide them.
    """
    for name, value in stacked.items():
        if name.endswith(_GATE_UP):
            prefix, width = name.removesuffix(".gate_up_proj"), value.shape[1] // 2
            for number, expert in enumerate(value, first):
                yield f"{prefix}.{number}.gate_proj.weight", expert[:width]
                yield f"{prefix}.{number}.up_proj.weight", expert[width:]
        elif name.endswith(_DOWN):
            prefix = name.removesuffix(".down_proj")
            for number, expert in enumerate(value, first):
                yield f"{prefix}.{number}.down_proj.weight", expert
        else:
            yield name, value


def released_tensors(stacked: Mapping[str, Tensor], first: int = 0) -> dict[str, Tensor]:
    """What ``released_views`` gives, as contiguous tensors: to be written to a file."""
    return {name: view.contiguous() for name, view in released_views(stacked, first)}


def expert_number(released: str) -> int | None:
    """Which routed expert a tensor of that released name belongs to; None: to none."""
    found = _EXPERT.search(released)
    return int(found[1]) if found else None


def released_name(stored: str) -> str:
    """The released name of a tensor that a file stores under this name, which is released or transformers 5's."""
    for pattern, released in _TRANSFORMERS_NAMES:
        stored = pattern.sub(released, stored)
    return stored
