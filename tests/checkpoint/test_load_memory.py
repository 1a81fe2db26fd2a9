from __future__ import annotations

from pathlib import Path

import pytest

from model.checkpoint.export import save_model
from model.checkpoint.file_names import CONFIG
from model.network.config import preset
from model.network.initial import new_model
from tests.benchmarks.checkpoint_memory import measure, whole_bytes, wide_config, write_wide


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


@pytest.mark.slow
def test_a_rank_that_loads_its_experts_never_holds_the_others(tmp_path: Path) -> None:
    small, wide = tmp_path / "small", tmp_path / "wide"
    save_model(new_model(preset("tiny")), small)
    largest = write_wide(wide, 16)
    check_part(small, wide, largest, fresh=False)


def test_a_rank_that_draws_its_experts_never_holds_the_others(tmp_path: Path) -> None:
    for name, config in (("small", preset("tiny")), ("wide", wide_config(16))):
        (tmp_path / name).mkdir()
        config.save(tmp_path / name / CONFIG)
    largest = 2 * 4 * config.text_config.hidden_size * config.text_config.moe_intermediate_size
    check_part(tmp_path / "small", tmp_path / "wide", largest, fresh=True)


def check_part(small: Path, wide: Path, largest: int, fresh: bool) -> None:
    """Rank 0 of 4 takes its part of 300 MiB, and one tensor (one expert's) beside it."""
    weights, growth = measure(small, wide, "float32", 4, fresh)
    whole = whole_bytes(wide)
    assert whole > 280 * 2**20 and weights < whole / 3
    assert 0.9 * weights < growth < weights + 2 * largest < whole / 2
