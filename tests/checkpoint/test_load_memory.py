from __future__ import annotations

from pathlib import Path

import pytest

from model.checkpoint.export import save_model
from model.network.config import preset
from model.network.initial import new_model
from tests.benchmarks.checkpoint_memory import measure, write_wide


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "expert_precision", "spare"), [("float32", "full", 1), ("bfloat16", "int4", 4)])
def test_loading_takes_the_memory_of_the_model_and_of_one_tensor(
    tmp_path: Path, dtype: str, expert_precision: str, spare: int
) -> None:
    """300 MiB of weights in float32, in matrices of 2 MiB. To unpack one from INT4 takes copies of it: the levels, and
    what they stand for before and after they are scaled."""
    small, wide = tmp_path / "small", tmp_path / "wide"
    save_model(new_model(preset("tiny")), small)
    largest = write_wide(wide, 16, expert_precision=expert_precision)
    weights, growth = measure(small, wide, dtype)
    assert weights > (280 if dtype == "float32" else 140) * 2**20
    assert 0.9 * weights < growth < weights + spare * largest
