"""Which tokens of packed rows attend to which: each to itself and the earlier ones of its own document (source: ours).

Shapes: B rows, T tokens in a row.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F


class Documents:
    """Every row is one document, or ``ids_BT`` holds each token's document number within its row."""

    def __init__(self, rows: int, tokens: int, device: torch.device, ids_BT: Tensor | None = None) -> None:
        self.rows, self.tokens, self.device = rows, tokens, device
        self._ids_BT = ids_BT

    @classmethod
    def of(cls, ids_BT: Tensor) -> Documents:
        """The documents of rows whose tokens have these document numbers."""
        return cls(ids_BT.shape[0], ids_BT.shape[1], ids_BT.device, ids_BT)

    @property
    def whole_rows(self) -> bool:
        """Whether every row is one document, so that a causal kernel needs no mask."""
        return self._ids_BT is None

    @cached_property
    def mask_B1TT(self) -> Tensor:
        """Bool: whether a token (third axis) attends to another (fourth)."""
        causal_TT = torch.ones(self.tokens, self.tokens, dtype=torch.bool, device=self.device).tril()
        if self._ids_BT is None:
            return causal_TT.expand(self.rows, 1, -1, -1)
        return ((self._ids_BT.unsqueeze(2) == self._ids_BT.unsqueeze(1)) & causal_TT).unsqueeze(1)

    @cached_property
    def first_BT(self) -> Tensor:
        """Int64: the column at which each token's document begins."""
        if self._ids_BT is None:
            return torch.zeros(self.rows, self.tokens, dtype=torch.int64, device=self.device)
        column_T = torch.arange(self.tokens, device=self.device)
        begins_BT = F.pad(self._ids_BT[:, 1:] != self._ids_BT[:, :-1], (1, 0), value=True)
        return (column_T * begins_BT).cummax(1).values

    @cached_property
    def segments(self) -> list[tuple[int, int, int]]:
        """(row, start, end) of every document, in order."""
        if self._ids_BT is None:
            return [(row, 0, self.tokens) for row in range(self.rows)]
        found = []
        for row, ids in enumerate(self._ids_BT.tolist()):
            start = 0
            for end in range(1, self.tokens + 1):
                if end == self.tokens or ids[end] != ids[start]:
                    found.append((row, start, end))
                    start = end
        return found
