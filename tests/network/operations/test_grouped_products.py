"""The experts' products: a loop on a CPU, torch's grouped product on an accelerator."""

from __future__ import annotations

import pytest
import torch

from model.network.operations import cpu_grouped, torch_grouped
from model.network.operations.choice import grouped_products


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("counts", [[8, 0, 3, 13], [0, 0, 24, 0]])
def test_both_multiply_alike(dtype: torch.dtype, counts: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(24, width, generator=generator).to(dtype) for width in (16, 32))
    weight = torch.randn(4, 16, 32, generator=generator).to(dtype)
    end = torch.tensor(counts).cumsum(0)
    torch.testing.assert_close(cpu_grouped.product(x, weight, end), torch_grouped.product(x, weight, end))
    torch.testing.assert_close(cpu_grouped.outer(x, grad, end), torch_grouped.outer(x, grad, end))


def test_an_accelerator_takes_the_layouts_that_experts_have() -> None:
    """On the meta device torch checks what its kernel for accelerators asks of dtypes, strides and alignment."""
    end = torch.empty(4, dtype=torch.int64, device="meta")
    x_SD, grad_SF = (torch.empty(96, width, dtype=torch.bfloat16, device="meta") for width in (64, 128))
    weight_EFD = torch.empty(4, 128, 64, dtype=torch.bfloat16, device="meta")
    products = grouped_products(x_SD)
    assert products.product(x_SD, weight_EFD.mT, end).shape == (96, 128)
    assert products.product(grad_SF, weight_EFD, end).shape == (96, 64)
    assert products.outer(grad_SF, x_SD, end).shape == (4, 128, 64)
    odd_SD = torch.empty(96, 65, dtype=torch.bfloat16, device="meta")[:, 1:]  # rows that begin between 16 bytes
    with pytest.raises(RuntimeError, match="stride"):
        products.product(odd_SD, weight_EFD.mT, end)
