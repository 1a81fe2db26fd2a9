"""The experts' products on an accelerator, by torch's grouped product: one kernel for all experts.
``choice.GroupedProducts`` says what each does.

Shapes: as in ``choice``.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F


def product(x_SD: Tensor, weight_EDF: Tensor, end_E: Tensor) -> Tensor:
    return F.grouped_mm(x_SD, weight_EDF, offs=end_E.int())


def ffn(
    x_SD: Tensor, gate_up_EGD: Tensor, down_EDF: Tensor, end_E: Tensor, swiglu: Callable[[Tensor], Tensor]
) -> Tensor:
    return product(swiglu(product(x_SD, gate_up_EGD.mT, end_E)), down_EDF.mT, end_E)


def outer(left_SD: Tensor, right_SF: Tensor, end_E: Tensor) -> Tensor:
    return F.grouped_mm(left_SD.T, right_SF, offs=end_E.int())
