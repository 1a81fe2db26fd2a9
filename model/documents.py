"""Which tokens of packed rows look at which: each at itself and the earlier ones of its own document (source: ours).

Shapes: B rows, T tokens in a row, H heads.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor


class Documents:
    """Every row is one document, or ``ids_BT`` holds each token's document number within its row."""

    def __init__(self, rows: int, tokens: int, device: torch.device, ids_BT: Tensor | None = None) -> None:
        self.rows, self.tokens, self.device = rows, tokens, device
        self._ids_BT = ids_BT

    @classmethod
    def of(cls, ids_BT: Tensor) -> Documents:
        return cls(ids_BT.shape[0], ids_BT.shape[1], ids_BT.device, ids_BT)

    @property
    def whole_rows(self) -> bool:
        """Whether every row is one document, so that a causal kernel needs no mask."""
        return self._ids_BT is None

    @cached_property
    def mask_B1TT(self) -> Tensor:
        """Bool: whether a token (third axis) looks at another (fourth)."""
        causal_TT = torch.ones(self.tokens, self.tokens, dtype=torch.bool, device=self.device).tril()
        if self._ids_BT is None:
            return causal_TT.expand(self.rows, 1, -1, -1)
        return ((self._ids_BT.unsqueeze(2) == self._ids_BT.unsqueeze(1)) & causal_TT).unsqueeze(1)

    def score_bias(self, heads: int, dtype: torch.dtype) -> Tensor:
        """What is added to the scores, [B, H, T, T]: 0 where the mask allows, else minus infinity."""
        bias_B1TT = torch.zeros(self.mask_B1TT.shape, dtype=dtype, device=self.device)
        return bias_B1TT.masked_fill_(~self.mask_B1TT, -torch.inf).expand(-1, heads, -1, -1).contiguous()

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
