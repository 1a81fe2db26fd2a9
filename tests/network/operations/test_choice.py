"""Which implementation computes what."""

from __future__ import annotations

import inspect

import pytest
import torch

from model.network.documents import Documents
from model.network.operations import cpu_grouped, cpu_ops, torch_grouped, torch_ops
from model.network.operations.choice import (
    GroupedProducts,
    Operations,
    attends_by_products,
    differentiable_operations,
    grouped_products,
    operations,
    reads_by_kernels,
)
from model.network.packed_attention import LONGEST

IMPLEMENTATIONS = [
    (Operations, torch_ops), (Operations, cpu_ops), (GroupedProducts, torch_grouped), (GroupedProducts, cpu_grouped)
]  # fmt: skip


@pytest.mark.parametrize(("protocol", "module"), IMPLEMENTATIONS, ids=lambda each: each.__name__.rpartition(".")[2])
def test_both_implementations_offer_every_operation(protocol: type, module: object) -> None:
    for name in (name for name in vars(protocol) if not name.startswith("_")):
        wanted = list(inspect.signature(getattr(protocol, name)).parameters)[1:]
        assert list(inspect.signature(getattr(module, name)).parameters) == wanted


def test_kernels_compute_on_a_cpu_with_sums_in_float32_or_float64() -> None:
    x, wide = torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2)
    assert operations(x) is operations(x, wide) is operations(x, wide.double()) is cpu_ops
    assert operations(x, x) is operations(wide, wide, x) is torch_ops
    assert operations(torch.zeros(2, device="meta")) is torch_ops


def test_autograd_uses_torch() -> None:
    x = torch.zeros(2)
    assert differentiable_operations(x, learns=True) is torch_ops
    assert differentiable_operations(x, learns=False) is cpu_ops


def test_the_experts_products_depend_on_the_device_alone() -> None:
    assert grouped_products(torch.zeros(2).double()) is cpu_grouped
    assert grouped_products(torch.zeros(2, device="meta")) is torch_grouped


def test_short_rows_on_a_cpu_attend_by_products_if_these_have_a_dtype_of_their_own() -> None:
    short, long = (Documents(1, tokens, torch.device("cpu")) for tokens in (LONGEST, LONGEST + 1))
    assert attends_by_products(short, torch.bfloat16)
    assert not attends_by_products(long, torch.bfloat16) and not attends_by_products(short, None)
    assert not attends_by_products(Documents(1, 4, torch.device("meta")), torch.bfloat16)


def test_float32_weights_on_a_cpu_read_by_kernels() -> None:
    assert reads_by_kernels(torch.zeros(2))
    assert not reads_by_kernels(torch.zeros(2).double()) and not reads_by_kernels(torch.zeros(2, device="meta"))
