"""What an arm's training gets of the outside world: the step still measures when the training has ended (ours)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model.checkpoint.publication import Checkpoints, Publication
from model.train.protocol import MetricLog, Progress


@dataclass(frozen=True)
class ArmServices:
    """``model.train.protocol.StepServices``."""

    work: Path
    checkpoints: Checkpoints
    metrics: MetricLog
    progress: Progress


class Unfinished:
    """Checkpoints that do not end the step: it still measures after the last one."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def latest(self) -> Path | None:
        return self._checkpoints.latest()

    def prepare(self, *, index: int, tokens_seen: int, complete: bool) -> Publication:
        return self._checkpoints.prepare(index=index, tokens_seen=tokens_seen, complete=False)
