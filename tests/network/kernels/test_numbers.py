from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from model.network.kernels import numbers
from model.network.kernels.numbers import array, exp, kernel, narrow, rank, ranked, wide


@kernel
def narrowed(x_N, y_N):
    for n in range(len(x_N)):
        y_N[n] = narrow(wide(x_N[n]), y_N)


@kernel
def exponentials(x_N, y_N):
    for n in range(len(x_N)):
        y_N[n] = exp(x_N[n])


@kernel
def largest(x_N):
    highest = rank(wide(x_N[0]))
    for n in range(len(x_N)):
        highest = max(highest, rank(wide(x_N[n])))
    return ranked(highest)


def test_rounding_to_bfloat16_is_torchs_bit_for_bit():
    drawn = torch.randn(100_000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-38, 38, 100_000)
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3.3895e38, math.inf, -math.inf, 0.0, -0.0, 1e-40])
    x_N = torch.cat((drawn, ties))
    y_N = torch.empty(len(x_N), dtype=torch.bfloat16)
    narrowed(array(x_N), array(y_N))
    assert torch.equal(y_N.view(torch.int16), x_N.bfloat16().view(torch.int16))
    back_N = torch.empty_like(x_N)
    narrowed(array(y_N), array(back_N))
    assert torch.equal(back_N, y_N.float())


def test_nan_stays_nan():
    nan_N = torch.tensor([math.nan, -math.nan])
    y_N, e_N = torch.empty(2, dtype=torch.bfloat16), torch.empty(2)
    narrowed(array(nan_N), array(y_N))
    exponentials(array(nan_N), array(e_N))
    assert y_N.isnan().all() and e_N.isnan().all() and np.isnan(largest(np.float32([1, math.nan, 3])))


def test_the_exponential_is_that_of_float64_and_levels_off():
    x_N = torch.linspace(-87, 88, 200_001)
    y_N = torch.empty_like(x_N)
    exponentials(array(x_N), array(y_N))
    error_N = (y_N.double() / x_N.double().exp() - 1).abs()
    assert error_N.max() < 1e-5 and error_N[x_N.abs() < 9].max() < 1e-6
    ends_N, y_N = torch.tensor([-math.inf, -1e9, -88, 89, 1e9, math.inf]), torch.empty(6)
    exponentials(array(ends_N), array(y_N))
    assert (y_N[:3] < 2e-38).all() and (y_N[3:] > 1e38).all() and y_N.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_maximum_of_ranks_is_the_maximum(dtype):
    generator = torch.Generator().manual_seed(1)
    for scale, shift in ((1, 0), (1e-3, -5), (1e30, 0), (1, 5)):
        x_N = (torch.randn(257, generator=generator) * scale + shift).to(dtype)
        assert largest(array(x_N)) == float(x_N.max())
    assert largest(array(torch.tensor([-math.inf, -3.0, -0.0]).to(dtype))) == 0
    assert largest(array(torch.tensor([2.0, math.inf]).to(dtype))) == math.inf


def test_machine_code_is_kept_where_nobody_else_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked, temporary = tmp_path / "file", tmp_path / "temporary"
    blocked.touch()
    temporary.mkdir()
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    kept = numbers.cache_folder(blocked, temporary)
    assert kept is not None and temporary in kept.parents
    private = kept.parent
    assert private.stat().st_mode & 0o077 == 0
    private.chmod(0o777)  # as somebody else would have made it
    assert numbers.cache_folder(blocked, temporary) is None
    assert tmp_path in (numbers.cache_folder(tmp_path, temporary) or blocked).parents
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "asked"))
    assert (tmp_path / "asked") in (numbers.cache_folder(blocked, temporary) or blocked).parents


def test_what_an_image_ships_and_may_not_be_written_is_copied_to_where_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, temporary = tmp_path / "image", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    shipped = numbers.cache_folder(image, temporary)
    assert shipped is not None and shipped.parent == image
    (shipped / "kernels").mkdir()
    (shipped / "kernels" / "norm.nbc").write_bytes(b"code")
    for path in (shipped / "kernels" / "norm.nbc", shipped / "kernels", shipped):
        path.chmod(0o555)
    access = os.access  # root may write everywhere, the images' user may not
    monkeypatch.setattr(os, "access", lambda path, mode: image not in Path(path).parents and access(path, mode))
    kept = numbers.cache_folder(image, temporary)
    assert kept is not None and kept.parent.parent == temporary
    assert (kept / "kernels" / "norm.nbc").read_bytes() == b"code"
    assert all(path.stat().st_mode & 0o200 for path in (kept, *kept.rglob("*"))), "new kernels are added"
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    (kept / "kernels" / "head.nbc").touch()
    assert numbers.cache_folder(image, temporary) == kept and (kept / "kernels" / "head.nbc").exists()


def test_without_a_place_kernels_are_compiled_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "FOLDER", None)

    @numbers.kernel
    def doubled(x_N):
        for n in range(len(x_N)):
            x_N[n] *= 2

    x_N = np.arange(3.0)
    doubled(x_N)
    assert x_N.tolist() == [0, 2, 4]
