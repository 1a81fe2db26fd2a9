"""The loop begins on two ranks that divide their state and goes on as one process, or the other way round."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from model.data.batches.folder import DataFolder
from model.parallel.layout import Layout
from model.parallel.ranks import Ranks
from tests.gloo import on_ranks
from tests.step_services import FolderServices, Killed
from tests.training import phase, train_tiny

pytestmark = pytest.mark.long

STEPS, SAVED, DIES = 5, 3, 4


def run(services: FolderServices, data: Path, ranks: Ranks) -> dict[int, float]:
    folder, weights = DataFolder(data), {"recall": 1.0, "digit_string": 1.0}
    one = phase(folder, weights, STEPS, 3e-4, tokens=96, checkpoint_every=SAVED, warmup_steps=2)
    with contextlib.suppress(Killed):
        train_tiny(folder, [one], services, ranks)
    return services.losses


def on_rank(rank: int, folder: Path, data: Path, stage: int, dies_at: int) -> dict[int, float]:
    return run(FolderServices(folder, dies_at, rank), data, Ranks.join(Layout(zero_stage=stage)))


@pytest.mark.parametrize("stage", [1, 3])
def test_the_curve_goes_on_under_another_layout(data: DataFolder, tmp_path: Path, stage: int) -> None:
    torch.set_num_threads(1)
    whole = run(FolderServices(tmp_path / "whole"), data.path, Ranks())
    first, second = on_ranks(2, on_rank, tmp_path, tmp_path / "two", data.path, stage, DIES)
    assert first == second and list(first) == [1, 2, 3, 4]
    found = FolderServices(tmp_path / "two")
    assert {path.name for path in found.latest().glob("optimizer-*")} == {  # type: ignore[union-attr]
        "optimizer-00000-of-00002.safetensors", "optimizer-00001-of-00002.safetensors"
    }  # fmt: skip
    rest = run(found, data.path, Ranks())
    assert list(rest) == [4, 5] and largest_gap({**first, **rest}, whole) < 1e-4

    again, _ = on_ranks(2, on_rank, tmp_path, begun_alone(tmp_path, data.path), data.path, stage, 0)
    assert list(again) == [4, 5] and largest_gap(again, whole) < 1e-4


def begun_alone(tmp_path: Path, data: Path) -> Path:
    """A folder with the checkpoint of one process that died."""
    run(FolderServices(tmp_path / "alone", DIES), data, Ranks())
    return tmp_path / "alone"


def largest_gap(losses: dict[int, float], reference: dict[int, float]) -> float:
    return max(abs(loss - reference[step]) for step, loss in losses.items())
