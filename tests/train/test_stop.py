"""A request to end that reaches one rank ends all of them after the same step; two real ranks over gloo."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.config import preset
from model.data.folder import DataFolder
from model.multimodal import KimiK25
from model.train import stop
from model.train.layout import Layout
from model.train.loop import train
from model.train.phase import Phase
from model.train.ranks import Ranks
from tests.gloo import on_ranks
from tests.tiny_folders import write_training_folder

STEPS, ASKED_AT = 5, 2


class Around:
    """What surrounds one rank; the last one is asked to end."""

    def __init__(self, ranks: Ranks, work: Path) -> None:
        self.ranks, self.work = ranks, work
        self.steps: list[int] = []
        self.saved: list[bool] = []
        self.checkpoints = self.metrics = self.progress = self

    def latest(self) -> None:
        return None

    def prepare(self, *, index: int, tokens_seen: int, complete: bool) -> Around:
        self.saved.append(complete)
        return self

    def clear(self) -> None: ...

    def add(self, folder: Path) -> list[str]:
        return sorted(path.name for path in folder.iterdir())

    def publish(self, folder: Path, added: Sequence[Any] = ()) -> None:
        self.published = len(added)

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def update(self, done: int, total: int, **figures: float) -> None:
        self.steps.append(done)
        if done == ASKED_AT and self.ranks.rank == self.ranks.world - 1:
            stop.request()


def of_rank(rank: int, folder: Path) -> dict[str, Any]:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    ranks = Ranks.join(Layout(zero_stage=1))
    data = DataFolder(folder / "data")
    stream = data.mixture({"recall": 1.0}, tokens_per_row=128, rows=2, seed=0)
    work = folder / f"work-{rank}"
    work.mkdir()
    around, ended = Around(ranks, work), False
    try:
        train(KimiK25(preset("tiny"), seed=1), [Phase(stream, STEPS, 1e-3)], data.path, around, ranks)
    except stop.Terminated:
        ended = True
    return {"ended": ended, "steps": around.steps, "saved": around.saved}


def test_one_rank_that_is_asked_ends_all_after_the_same_saved_step(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_training_folder(tmp_path / "data")
    found = on_ranks(2, of_rank, tmp_path, tmp_path)
    wanted = {"ended": True, "steps": list(range(1, ASKED_AT + 1)), "saved": [False]}
    assert found == [wanted, wanted]
