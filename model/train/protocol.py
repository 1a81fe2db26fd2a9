"""What a trainer needs from the outside world. ``components.runtime`` implements these over S3 and MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class Checkpoints(Protocol):
    """Where one step's checkpoints go and come back from."""

    def latest(self) -> Path | None:
        """A local folder with the newest verified checkpoint of this step, or None if there is none yet."""
        ...

    def save(self, folder: Path, *, index: int, tokens_seen: int, complete: bool) -> None:
        """Publish ``folder`` as checkpoint ``index`` (0, 1, ...) of this step; when it returns, it is durable.

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
