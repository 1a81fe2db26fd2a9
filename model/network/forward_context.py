"""What a forward depends on in addition to weights and batch: one value, passed from the model down to its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from model.boundary.errors import MoonflowError
from model.network.quantization import PRECISIONS


class SequenceGroup(Protocol):
    """The ranks that share the columns of each row, as seen from one of them
    (``model.parallel.sequence_parallel.UlyssesGroup``).

    Shapes: B rows, T tokens in a row, t = T / size of this rank, H heads, h of them on this rank, R rope dims, M vision
    tokens, D hidden, x heads times their dims, X any.
    """

    @property
    def size(self) -> int:
        """Ranks."""
        ...

    def heads_of(self, heads: int) -> int:
        """How many of ``heads`` attend on this rank."""
        ...

    def of_all_heads(self, own_h: Tensor) -> Tensor:
        """Largest logits [H] with minus infinity for the heads of other ranks."""
        ...

    def whole_rows(self, own_XBt: Tensor) -> Tensor:
        """[X, B, T] of every rank's [X, B, t], without gradient."""
        ...

    def to_heads(self, q_Btx: Tensor, kv_Btx: Tensor, rope_BtR: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Exchange projections: give those of this rank's columns, get those of all columns for this rank's heads."""
        ...

    def to_columns(self, out_BTx: Tensor) -> Tensor:
        """Exchange outputs: give those of this rank's heads, get those of all heads for this rank's columns."""
        ...

    def of_columns(self, features_MD: Tensor, pads_BT: Tensor) -> Tensor:
        """The features of this rank's media pads, from those of the whole rows."""
        ...

    def sum_(self, x: Tensor) -> Tensor:
        """``x`` becomes its sum over the group, without gradient."""
        ...


@dataclass(frozen=True)
class ForwardContext:
    """How to run a forward.

    Attributes:
        products: dtype of the matrix products, in forward and backward (``model.network.precision``); None: that of
            the weights.
        expert_precision: "full" uses the routed experts' weights as they are, "int4" rounded to INT4
            (``model.network.quantization``).
        sequence: the ranks that share the rows; the batch then holds this rank's columns, and every rank of the group
            runs the same forwards and backwards. None: whole rows.

    Raises:
        MoonflowError: an unknown ``expert_precision``.
    """

    products: torch.dtype | None = None
    expert_precision: str = "full"
    sequence: SequenceGroup | None = None

    def __post_init__(self) -> None:
        if self.expert_precision not in PRECISIONS:
            known = ", ".join(PRECISIONS)
            raise MoonflowError(f"expert precision {self.expert_precision!r} is unknown; choose one of {known}")


PLAIN = ForwardContext()
"""Products in the dtype of the weights, experts as they are, whole rows."""
