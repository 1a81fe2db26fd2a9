"""What a step's trainer uses of the outside world, without services: folders and memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from model.data.batches.folder import DataFolder
from model.parallel.ranks import Ranks


class Killed(BaseException):
    """The process ends here."""


class FolderServices:
    """``model.train.protocol.StepServices``, and ``components.runtime.step.StepContext`` as far as stages use it.

    Checkpoints lie in ``saved-<index>`` of a folder that outlives the run and that several ranks may share; URIs are
    local paths.

    Args:
        kill_at: ends the process while this step is reported.
        rank: of this process, whose files lie apart. ranks: those that run a stage together.

    Attributes:
        reports: figures of each step that was reported.
        logged: metrics of each step that was logged.
        saved: index, tokens seen and completeness of what this rank published.
        warned: lines for the step's manifests.
        on_update: called with each step that was reported.
        warnings: what the stage warned of.
        files: path -> text of what the stage keeps in its MLflow run.
    """

    def __init__(self, folder: Path, kill_at: int = 0, rank: int = 0, ranks: Ranks | None = None) -> None:
        self.ranks = ranks or Ranks()
        rank = rank or self.ranks.rank
        self.folder, self.work, self.kill_at = folder, folder / f"work-{rank}-{kill_at}", kill_at
        self.work.mkdir(parents=True, exist_ok=True)
        self.reports: dict[int, dict[str, float]] = {}
        self.logged: dict[int, dict[str, float]] = {}
        self.saved: list[tuple[int, int, bool]] = []
        self.on_update: Callable[[int], object] = lambda step: None
        self.checkpoints = self.metrics = self.progress = self
        self.run_id, self.step = "run", "step"
        self.warnings: list[str] = []
        self.files: dict[str, str] = {}

    @property
    def losses(self) -> dict[int, float]:
        return {step: figures["loss"] for step, figures in self.reports.items()}

    @property
    def newest(self) -> Path | None:
        return self.latest()

    def warn(self, line: str) -> None:
        self.warnings.append(line)

    def log_file(self, path: str, text: str) -> None:
        self.files[path] = text

    def fetch(self, uri: str) -> Path:
        return Path(uri)

    def data(self, uri: str) -> DataFolder:
        return DataFolder(Path(uri))

    def latest(self) -> Path | None:
        published = [int(path.name.split("-")[1]) for path in self.folder.glob("published-*")]
        return self.folder / f"saved-{max(published)}" if published else None

    def prepare(self, *, index: int, tokens_seen: int, complete: bool) -> FolderServices:
        self.preparing = (index, tokens_seen, complete)
        return self

    def clear(self) -> None:
        """Nothing is ever damaged here."""

    def add(self, folder: Path) -> list[str]:
        shutil.copytree(folder, self.folder / f"saved-{self.preparing[0]}", dirs_exist_ok=True)
        return [path.name for path in folder.iterdir()]

    def publish(self, folder: Path, added: Sequence[list[str]] = ()) -> None:
        self.add(folder)
        index = self.preparing[0]
        assert all((self.folder / f"saved-{index}" / name).is_file() for names in added for name in names)
        (self.folder / f"published-{index}").touch()
        self.saved.append(self.preparing)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.logged[step] = dict(metrics)

    def update(self, done: int, total: int, **figures: float) -> None:
        self.reports[done] = figures
        self.on_update(done)
        if done == self.kill_at:
            raise Killed
