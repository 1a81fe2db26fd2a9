"""One matrix product per group of rows, in one call: what experts are made of (source: ours).

On an accelerator it is torch's grouped product, one kernel for all groups. On a CPU that kernel is a loop too, knows no
float64 and is not counted by torch's FLOP counter, so the loop is here.

Shapes: S rows sorted by group, E groups, D inputs, F outputs. ``end_E`` (int64): where each group ends.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F


def grouped_product(x_SD: Tensor, weight_EDF: Tensor, end_E: Tensor) -> Tensor:
    """x @ weight of the row's group, [S, F]."""
    if not x_SD.is_cpu:
        return F.grouped_mm(x_SD, weight_EDF, offs=end_E.int())
    out_SF = x_SD.new_empty(len(x_SD), weight_EDF.shape[2])
    for group, rows in _groups(end_E):
        torch.mm(x_SD[rows], weight_EDF[group], out=out_SF[rows])
    return out_SF


def grouped_outer(left_SD: Tensor, right_SF: Tensor, end_E: Tensor) -> Tensor:
    """left^T @ right over each group's rows, [E, D, F]; zero for a group without rows."""
    if not left_SD.is_cpu:
        return F.grouped_mm(left_SD.T, right_SF, offs=end_E.int())
    out_EDF = left_SD.new_zeros(len(end_E), left_SD.shape[1], right_SF.shape[1])
    for group, rows in _groups(end_E):
        torch.mm(left_SD[rows].T, right_SF[rows], out=out_EDF[group])
    return out_EDF


def _groups(end_E: Tensor) -> Iterator[tuple[int, slice]]:
    """Every group that has rows."""
    start = 0
    for group, end in enumerate(end_E.tolist()):
        if end > start:
            yield group, slice(start, end)
        start = end
