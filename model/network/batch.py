"""What the network reads: packed rows of tokens with their targets and media (source: ours).

Shapes: B rows, T tokens in a row, N positions with a target, P patches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

GridTHW = tuple[int, int, int]
"""Frames, and rows and columns of patches, of one image or video chunk."""


@dataclass(frozen=True)
class Batch:
    """What the network reads.

    Attributes:
        input_ids_BT: int64; the tail of a row is padding.
        position_ids_BT: int64; counted from 0 in each document.
        document_ids_BT: int64; the document's number within its row, -1 in padding.
        target_positions_N: int64; flat positions (row * T + column) whose next token is trained on, ascending.
        targets_N: int64; those next tokens.
        vision_N: bool; whether the target's document holds an image or a video.
        sample_N: int64; the number of the target's document in the list that was packed.
        pixel_values: float32 [P, 3, 14, 14] of all media in reading order of the rows, or None.
        grid_thws: (t, h, w) of each medium, in the same order.
        keys: key of each packed document, by its number in ``sample_N``.
    """

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    document_ids_BT: Tensor
    target_positions_N: Tensor
    targets_N: Tensor
    vision_N: Tensor
    sample_N: Tensor
    pixel_values: Tensor | None
    grid_thws: list[GridTHW]
    keys: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.document_ids_BT >= 0).sum())

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)
