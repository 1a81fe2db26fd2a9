"""A little real data, and what surrounds a step without services."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from model.data.folder import DataFolder
from tests.tiny_folders import write_training_folder


class Killed(BaseException):
    """The process ends here."""


class Around:
    """Checkpoints in a folder that outlives the run, metrics in lists; dies while reporting step ``kill_at``."""

    def __init__(self, folder: Path, kill_at: int = 0) -> None:
        self.folder, self.work, self.kill_at = folder, folder / f"work-{kill_at}", kill_at
        self.losses: dict[int, float] = {}
        self.logged: dict[int, Mapping[str, float]] = {}
        self.saved: list[tuple[int, int, bool]] = []
        self.checkpoints = self.metrics = self.progress = self

    def latest(self) -> Path | None:
        found = sorted(self.folder.glob("saved-*"), key=lambda path: int(path.name.split("-")[1]))
        return found[-1] if found else None

    def prepare(self, *, index: int, tokens_seen: int, complete: bool) -> Around:
        self.preparing = (index, tokens_seen, complete)
        return self

    def publish(self, folder: Path, added: Sequence[object] = ()) -> None:
        index, tokens_seen, complete = self.preparing
        shutil.copytree(folder, self.folder / f"saved-{index}")
        self.saved.append((index, tokens_seen, complete))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.logged[step] = metrics

    def update(self, done: int, total: int, **figures: float) -> None:
        self.losses[done] = figures["loss"]
        if done == self.kill_at:
            raise Killed


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    return DataFolder(write_training_folder(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="session")
def around() -> type[Around]:
    return Around


@pytest.fixture(scope="session")
def killed() -> type[BaseException]:
    return Killed
