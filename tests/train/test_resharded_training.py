"""The loop begins on two ranks that divide their state and goes on as one process, or the other way round."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from model.config import preset
from model.data.folder import DataFolder
from model.multimodal import KimiK25
from model.train.loop import train
from model.train.phase import Phase
from model.train.ranks import Layout, Ranks
from tests.gloo import on_ranks

pytestmark = pytest.mark.long

STEPS, SAVED, DIES = 5, 3, 4


class Died(BaseException):
    """The process ends here."""


class Shared:
    """A folder of checkpoints that the ranks of one machine share; dies while reporting step ``dies_at``."""

    def __init__(self, folder: Path, rank: int = 0, dies_at: int = 0) -> None:
        self.folder, self.work, self.dies_at, self.index = folder, folder / f"work{rank}", dies_at, 0
        self.losses: dict[int, float] = {}
        self.checkpoints = self.metrics = self.progress = self

    def latest(self) -> Path | None:
        found = sorted(self.folder.glob("saved-*/published"))
        return found[-1].parent if found else None

    def prepare(self, *, index: int, tokens_seen: int, complete: bool) -> Shared:
        self.index = index
        return self

    def clear(self) -> None:
        """Nothing is ever damaged here."""

    def add(self, folder: Path) -> list[str]:
        shutil.copytree(folder, self.folder / f"saved-{self.index}", dirs_exist_ok=True)
        return [path.name for path in folder.iterdir()]

    def publish(self, folder: Path, added: Sequence[list[str]] = ()) -> None:
        self.add(folder)
        made = self.folder / f"saved-{self.index}"
        assert all((made / name).is_file() for names in added for name in names)
        (made / "published").touch()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Losses come by ``update``."""

    def update(self, done: int, total: int, **figures: float) -> None:
        if done == self.dies_at:
            raise Died
        self.losses[done] = figures["loss"]


def run(around: Shared, data: Path, ranks: Ranks) -> dict[int, float]:
    stream = DataFolder(data).mixture({"recall": 1.0, "digit_string": 1.0}, tokens_per_row=96, rows=2, seed=0)
    phase = Phase(stream, STEPS, 3e-4, warmup_steps=2, checkpoint_every=SAVED)
    with contextlib.suppress(Died):
        train(KimiK25(preset("tiny"), seed=1), [phase], data, around, ranks)  # type: ignore[arg-type]
    return around.losses


def on_rank(rank: int, folder: Path, data: Path, stage: int, dies_at: int) -> dict[int, float]:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    return run(Shared(folder, rank, dies_at), data, Ranks.join(Layout(zero_stage=stage)))


@pytest.mark.parametrize("stage", [1, 3])
def test_the_curve_goes_on_under_another_layout(data: DataFolder, tmp_path: Path, stage: int) -> None:
    torch.set_num_threads(1)
    whole = run(Shared(tmp_path / "whole"), data.path, Ranks())
    first, second = on_ranks(2, on_rank, tmp_path, tmp_path / "two", data.path, stage, DIES)
    assert first == second and list(first) == [1, 2, 3]
    found = Shared(tmp_path / "two")
    assert {path.name for path in found.latest().glob("optimizer-*")} == {  # type: ignore[union-attr]
        "optimizer-00000-of-00002.safetensors", "optimizer-00001-of-00002.safetensors"
    }  # fmt: skip
    rest = run(found, data.path, Ranks())
    assert list(rest) == [4, 5] and largest_gap({**first, **rest}, whole) < 1e-4

    again, _ = on_ranks(2, on_rank, tmp_path, begun_alone(tmp_path, data.path), data.path, stage, 0)
    assert list(again) == [4, 5] and largest_gap(again, whole) < 1e-4


def begun_alone(tmp_path: Path, data: Path) -> Path:
    """A folder with the checkpoint of one process that died."""
    run(Shared(tmp_path / "alone", dies_at=DIES), data, Ranks())
    return tmp_path / "alone"


def largest_gap(losses: dict[int, float], reference: dict[int, float]) -> float:
    return max(abs(loss - reference[step]) for step, loss in losses.items())
