"""The experts' products on a CPU, in a loop over the experts; ``choice.GroupedProducts`` says what each does.

torch's grouped product is a loop on a CPU too, knows no float64 and is not counted by torch's FLOP counter.

Shapes: as in ``choice``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def product(x_SD: Tensor, weight_EDF: Tensor, end_E: Tensor) -> Tensor:
    out_SF = x_SD.new_empty(len(x_SD), weight_EDF.shape[2])
    for expert, rows in _experts_with_rows(end_E):
        torch.mm(x_SD[rows], weight_EDF[expert], out=out_SF[rows])
    return out_SF


def ffn(
    x_SD: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, end_E: Tensor, swiglu: Callable[[Tensor], Tensor]
) -> Tensor:
    """Expert by expert, so that the result of its first product stays in a core's cache until the second."""
    out_SD = torch.empty_like(x_SD)
    for expert, rows in _experts_with_rows(end_E):
        h_SG = torch.mm(x_SD[rows], gate_up_EGD[expert].T)
        torch.mm(swiglu(h_SG), down_EDF[expert].T, out=out_SD[rows])
    return out_SD


def outer(left_SD: Tensor, right_SF: Tensor, end_E: Tensor) -> Tensor:
    out_EDF = left_SD.new_zeros(len(end_E), left_SD.shape[1], right_SF.shape[1])
    for expert, rows in _experts_with_rows(end_E):
        torch.mm(left_SD[rows].T, right_SF[rows], out=out_EDF[expert])
    return out_EDF


def _experts_with_rows(end_E: Tensor) -> Iterator[tuple[int, slice]]:
    start = 0
    for expert, end in enumerate(end_E.tolist()):
        if end > start:
            yield expert, slice(start, end)
        start = end
