"""Steps that would spoil the weights: they are skipped, and if they keep coming the run rolls back (source: ours).

PaLM (arXiv 2204.02311, section 5.1) restarts before a spike and passes over the batches that led to it; OLMo 2 skips a
step whose loss is many standard deviations above the recent ones. This does the second, then the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

Verdict = Literal["train", "skip", "roll back"]

JUDGED = ("loss/text", "loss/vision")  # apart: a mixture that turns to images is no spike
WINDOW = 128  # trained steps that a loss is compared with
KNOWN = 32  # that many are needed before anything is called a spike
ENOUGH = 256  # targets: a mean over fewer is that of one or two documents, which may be hard
SIGMAS = 10.0  # above the window's mean ...
OVER_LARGEST = 1.25  # ... and so many times its largest value: small batches have heavy tails
PATIENCE = 3  # spikes in a row that are skipped; the next rolls back
ROLLBACKS = 3  # without a new checkpoint in between; then the run ends


class SpikeGuard:
    """Judges each step by its figures before the weights follow it.

    Its memory is in the checkpoints (``state``), so a resumed run judges as the unbroken one.

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
        """``figures``: of ``Engine.backward``, the same on every rank."""
        self.reason = _not_finite(figures) or self._spike(figures)
        if not self.reason:
            self._in_a_row = 0
            for name, values in self._recent.items():
                if _says_something(name, figures):
                    values.append(figures[name])
                    del values[:-WINDOW]
            return "train"
        self._in_a_row += 1
        return "skip" if self._in_a_row <= PATIENCE else "roll back"

    def _spike(self, figures: Mapping[str, float]) -> str:
        for name, values in self._recent.items():
            if not _says_something(name, figures) or len(values) < KNOWN:
                continue
            mean, spread = float(np.mean(values)), float(np.std(values))
            bound = max(mean + SIGMAS * spread, OVER_LARGEST * max(values))
            if figures[name] > bound:
                return f"{name} is {figures[name]:.3g} nats, after {mean:.3g} +- {spread:.2g} before it"
        return ""


def _says_something(name: str, figures: Mapping[str, float]) -> bool:
    """Whether the batch has a loss of that modality, over targets enough to be compared."""
    return name in figures and figures[name.replace("loss/", "targets/")] >= ENOUGH


def _not_finite(figures: Mapping[str, float]) -> str:
    for name, value in figures.items():
        if not math.isfinite(value):
            return f"{name} is {value}"
    return ""
