"""A step's progress: a small JSON file for the CLI and a plain line for a cluster's log."""

from __future__ import annotations

import json
import math
import time
from contextlib import suppress
from pathlib import Path

from model.boundary.whole_file import write_whole

_FILE_EVERY_S = 0.3
_LINE_EVERY_S = 10.0


class Silent:
    """``model.train.protocol.Progress`` of a rank that leaves the reporting to the first."""

    def update(self, done: int, total: int, **figures: float) -> None: ...


class StepProgress:
    """``model.train.protocol.Progress``: ``<run dir>/progress/<step>.json``, replaced atomically.

    The file holds ``{"step", "done", "total", "figures", "started", "updated", "eta_s"}``; times are Unix seconds,
    ``eta_s`` is None until a rate is known. An error of the file system never stops the step.
    """

    def __init__(self, folder: Path, step: str) -> None:
        self._path = folder / f"{step}.json"
        self._step = step
        self._started = time.time()
        self._first: tuple[float, int] | None = None
        self._wrote = self._printed = -math.inf

    def update(self, done: int, total: int, **figures: float) -> None:
        """Report ``done`` of ``total`` units with the newest figures."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)  # a resumed step starts above zero: its rate counts from here
        last = done >= total
        if now - self._wrote >= _FILE_EVERY_S or last:
            self._wrote = now
            self._write(now, done, total, figures)
        if now - self._printed >= _LINE_EVERY_S or last:
            self._printed = now
            print(self._line(now, done, total, figures), flush=True)

    def _eta_s(self, now: float, done: int, total: int) -> float | None:
        if self._first is None or done <= self._first[1]:
            return None
        return (now - self._first[0]) / (done - self._first[1]) * max(0, total - done)

    def _line(self, now: float, done: int, total: int, figures: dict[str, float]) -> str:
        eta = self._eta_s(now, done, total)
        shown = "".join(f" {name} {value:.4g}" for name, value in figures.items())
        return f"{self._step} {done}/{total}{shown}" + (f" eta {eta:.0f}s" if eta is not None else "")

    def _write(self, now: float, done: int, total: int, figures: dict[str, float]) -> None:
        state = {
            "step": self._step,
            "done": done,
            "total": total,
            "figures": {name: float(value) for name, value in figures.items()},
            "started": self._started,
            "updated": time.time(),
            "eta_s": self._eta_s(now, done, total),
        }
        with suppress(OSError):
            write_whole(self._path, json.dumps(state).encode())
