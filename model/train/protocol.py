"""What a trainer needs from the outside world. ``components.runtime`` implements it over S3 and MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from model.checkpoint.publication import Checkpoints


class MetricLog(Protocol):
    """Where metrics are logged."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics as of ``step``, counted over the whole step of the pipeline."""
        ...


class Progress(Protocol):
    """Where progress is shown."""

    def update(self, done: int, total: int, **figures: float) -> None:
        """Report ``done`` of ``total`` units with the newest figures (``loss``, ``tokens_per_s``, ``reward``)."""
        ...


class StepServices(Protocol):
    """What a step's trainer uses of the outside world.

    Attributes:
        work: a local folder it may write to.
        checkpoints: where the step's checkpoints are kept.
    """

    @property
    def work(self) -> Path: ...
    @property
    def checkpoints(self) -> Checkpoints: ...
    @property
    def metrics(self) -> MetricLog: ...
    @property
    def progress(self) -> Progress: ...
