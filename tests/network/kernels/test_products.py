from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.network.kernels.numbers import array, kernel
from model.network.kernels.products import product, products
from tests.drawn import draw

ROOT = Path(__file__).parents[3]


@kernel
def multiply(left_MK, right_KN, out_MN):
    product(left_MK, right_KN, out_MN)


@kernel
def multiply_many(left_GMK, right_GKN, out_GMN):
    products(left_GMK, right_GKN, out_GMN)


@kernel
def multiply_copies(left_MK, right_NK, out_MN):
    """Copies that nothing but the products hold; the memory of one that went too early is the next one's."""
    for n in range(len(out_MN)):
        product(left_MK[n : n + 1].copy(), right_NK.copy().T, out_MN[n : n + 1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_products_are_torchs(dtype: torch.dtype) -> None:
    left, right, out = draw(7, 33, dtype=dtype), draw(12, 33, dtype=dtype), torch.empty(7, 12, dtype=dtype)
    multiply(*map(array, (left, right.T, out)))
    assert torch.equal(out, left @ right.T)
    multiply(*map(array, (left[2:4], right.T[:, 3:8], out[1:3, 5:10])))  # the rest of the memory stays as it is
    expected = left @ right.T
    expected[1:3, 5:10] = left[2:4] @ right.T[:, 3:8]
    assert torch.equal(out, expected)
    many_left, many_right = draw(3, 8, 16, dtype=dtype), draw(3, 20, 16, dtype=dtype)
    many = torch.zeros(3, 10, 20, dtype=dtype)
    multiply_many(*map(array, (many_left, many_right.mT, many[:, 1:9])))
    assert torch.equal(many[:, 1:9], many_left @ many_right.mT) and not many[:, ::9].any()


def products_of_copies() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        left, right, out = draw(64, 128, dtype=dtype), draw(96, 128, dtype=dtype), torch.empty(64, 96, dtype=dtype)
        multiply_copies(*map(array, (left, right, out)))
        torch.testing.assert_close(out, left @ right.T)


def test_arrays_outlive_their_products() -> None:
    """Where memory is overwritten when it is freed, which glibc does not do to what it keeps for the next request."""
    overwritten = {"MALLOC_PERTURB_": "165", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
    code = f"from {__name__} import products_of_copies; products_of_copies()"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **overwritten}, cwd=ROOT, check=True)


@pytest.mark.parametrize("right", [(4, 5), (3, 4)], ids=["inner", "outer"])
def test_shapes_that_do_not_fit_are_an_error(right: tuple[int, int]) -> None:
    given = torch.zeros(2, 3), torch.zeros(right), torch.zeros(2, 5)
    with pytest.raises(ValueError, match="shapes that do not fit"):
        multiply(*map(array, given))
    with pytest.raises(ValueError, match="shapes that do not fit"):
        multiply_many(*(array(x[None]) for x in given))
    with pytest.raises(ValueError, match="shapes that do not fit"):
        multiply_many(*(array(x[None].repeat(count, 1, 1)) for x, count in zip(given, (2, 2, 1), strict=True)))


def test_what_torch_refuses_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="a matrix product failed"):
        multiply(*map(array, (torch.zeros(2, 3), torch.zeros(3, 5, dtype=torch.float64), torch.zeros(2, 5))))
