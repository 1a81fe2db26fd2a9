"""What a trainer needs from the outside world. ``components.runtime`` implements these over S3 and MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class Publication(Protocol):
    """One checkpoint on its way out. What it tells beside its files was fixed when it was prepared.

    Its methods may be called from another thread than the training's. One rank calls ``publish``. Where there are
    others, it calls ``clear`` first; then each of the others calls ``add``; then it publishes.
    """

    def clear(self) -> None:
        """Remove what a damaged checkpoint of the same index left."""
        ...

    def add(self, folder: Path) -> Any:
        """Bring this rank's files to the checkpoint; returns what ``publish`` needs to know of them."""
        ...

    def publish(self, folder: Path, added: Sequence[Any] = ()) -> object:
        """Publish ``folder`` and what the others added, all or nothing; when it returns, it is durable."""
        ...


class Checkpoints(Protocol):
    """Where one step's checkpoints go and come back from."""

    def latest(self) -> Path | None:
        """A local folder with the newest verified checkpoint of this step, or None if there is none yet."""
        ...

    def prepare(self, *, index: int, tokens_seen: int, complete: bool) -> Publication:
        """Checkpoint ``index`` (0, 1, ...) of this step as of now: its metrics so far, for example.

        ``complete`` marks the step's final output.
        """
        ...


class Metrics(Protocol):
    def log(self, metrics: Mapping[str, float], step: int) -> None: ...


class Progress(Protocol):
    def update(self, done: int, total: int, **figures: float) -> None:
        """Report ``done`` of ``total`` units with the newest figures (``loss``, ``tokens_per_s``, ``reward``)."""
        ...


class Surroundings(Protocol):
    """All of the above for one step, and a local folder it may write to."""

    @property
    def work(self) -> Path: ...
    @property
    def checkpoints(self) -> Checkpoints: ...
    @property
    def metrics(self) -> Metrics: ...
    @property
    def progress(self) -> Progress: ...
