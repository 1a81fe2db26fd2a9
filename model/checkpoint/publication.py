"""Where checkpoints are kept, as saving sees it. ``components.runtime.checkpoints`` implements it over S3 (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol


class Publication(Protocol):
    """One checkpoint that is being published. ``prepare`` has fixed everything that it states in addition to its files.

    Its methods may be called from another thread than the training's. One rank calls ``publish``. If there are other
    ranks, it calls ``clear`` first, then each other rank calls ``add``, and then it publishes.
    """

    def clear(self) -> None:
        """Remove what a damaged checkpoint of the same index left."""
        ...

    def add(self, folder: Path) -> Any:
        """Upload this rank's files; returns what ``publish`` needs to know of them."""
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
        """Begin to publish checkpoint ``index`` (0, 1, ...); what it states, such as the metrics so far, is fixed now.

        Args:
            tokens_seen: by this step so far.
            complete: marks the step's final output.
        """
        ...
