"""The loop of the CPU against torch's grouped product, which an accelerator runs."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from model.grouped_product import grouped_outer, grouped_product


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counts", [[8, 0, 3, 13], [0, 0, 24, 0]])
def test_groups_are_multiplied_as_torch_does(dtype: torch.dtype, counts: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(24, width, generator=generator).to(dtype) for width in (16, 32))
    weight = torch.randn(4, 16, 32, generator=generator).to(dtype)
    end = torch.tensor(counts).cumsum(0)
    torch.testing.assert_close(grouped_product(x, weight, end), F.grouped_mm(x, weight, offs=end.int()))
    torch.testing.assert_close(grouped_outer(x, grad, end), F.grouped_mm(x.T, grad, offs=end.int()))
