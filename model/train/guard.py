"""Steps that would spoil the weights: they are skipped, and if they keep coming the run rolls back (source: ours).

PaLM (arXiv 2204.02311, section 5.1) restarts before a spike and skips the batches that led to it; OLMo 2 skips a step
whose loss is many standard deviations above the recent ones. Here steps are skipped first; if spikes continue, the run
restarts from a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

Verdict = Literal["train", "skip", "roll back"]

JUDGED = ("loss/text", "loss/vision")  # separately: a mixture that gets more images is not a spike
WINDOW = 128  # most trained steps that a loss is compared with
KNOWN = 32  # fewest trained steps that a loss is compared with; before that nothing is a spike
ENOUGH = 256  # fewest targets of a loss that is compared: with fewer, one hard document decides it
SIGMAS = 10.0  # a spike is this many standard deviations above the window's mean ...
OVER_LARGEST = 1.25  # ... and this many times above its largest value: small batches have heavy tails
PATIENCE = 3  # spikes in a row that are skipped; the next rolls back
ROLLBACKS = 3  # to one checkpoint; then the run ends


class SpikeGuard:
    """Judges each step by its figures before the weights follow it.

    Its ``state`` is part of a checkpoint, so a resumed run judges as one that was not interrupted.

    Attributes:
        reason: what was wrong with the last step that was not trained, in words.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        saved = state or {"recent": {}, "in_a_row": 0}
        self._recent: dict[str, list[float]] = {name: list(saved["recent"].get(name, ())) for name in JUDGED}
        self._in_a_row: int = saved["in_a_row"]
        self.reason = ""

    def state(self) -> dict[str, Any]:
        """JSON-able."""
        return {"recent": {name: list(values) for name, values in self._recent.items()}, "in_a_row": self._in_a_row}

    def judge(self, figures: Mapping[str, float]) -> Verdict:
        """Judge a step by the figures of ``TrainingEngine.backward``; the verdict is the same on every rank."""
        self.reason = _not_finite(figures) or self._spike(figures)
        if not self.reason:
            self._in_a_row = 0
            for name, values in self._recent.items():
                if _comparable(name, figures):
                    values.append(figures[name])
                    del values[:-WINDOW]
            return "train"
        self._in_a_row += 1
        return "skip" if self._in_a_row <= PATIENCE else "roll back"

    def _spike(self, figures: Mapping[str, float]) -> str:
        for name, values in self._recent.items():
            if not _comparable(name, figures) or len(values) < KNOWN:
                continue
            mean, spread = float(np.mean(values)), float(np.std(values))
            bound = max(mean + SIGMAS * spread, OVER_LARGEST * max(values))
            if figures[name] > bound:
                return f"{name} is {figures[name]:.3g} nats, after {mean:.3g} +- {spread:.2g} before it"
        return ""


def _comparable(name: str, figures: Mapping[str, float]) -> bool:
    """Whether the batch has this loss, over at least ``ENOUGH`` targets."""
    return name in figures and figures[name.replace("loss/", "targets/")] >= ENOUGH


def _not_finite(figures: Mapping[str, float]) -> str:
    for name, value in figures.items():
        if not math.isfinite(value):
            return f"{name} is {value}"
    return ""
