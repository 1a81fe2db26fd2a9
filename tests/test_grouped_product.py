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


def test_an_accelerator_takes_the_layouts_that_experts_have() -> None:
    """On the meta device torch checks what its kernel for accelerators asks of dtypes, strides and alignment."""
    end = torch.empty(4, dtype=torch.int64, device="meta")
    x_SD, grad_SF = (torch.empty(96, width, dtype=torch.bfloat16, device="meta") for width in (64, 128))
    weight_EFD = torch.empty(4, 128, 64, dtype=torch.bfloat16, device="meta")
    assert grouped_product(x_SD, weight_EFD.mT, end).shape == (96, 128)
    assert grouped_product(grad_SF, weight_EFD, end).shape == (96, 64)
    assert grouped_outer(grad_SF, x_SD, end).shape == (4, 128, 64)
    odd_SD = torch.empty(96, 65, dtype=torch.bfloat16, device="meta")[:, 1:]  # rows that begin between 16 bytes
    with pytest.raises(RuntimeError, match="stride"):
        grouped_product(odd_SD, weight_EFD.mT, end)
