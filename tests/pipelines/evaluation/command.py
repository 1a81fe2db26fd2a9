"""What the tests of ``moonflow evaluate`` share."""

from __future__ import annotations

from collections.abc import Callable

from model.data.samples.sample import Sample
from model.evals.drawn import drawn
from model.evals.suites import SUITES

Run = Callable[..., tuple[int, str, str]]


def tasks_of(name: str, count: int) -> list[Sample]:
    return drawn(SUITES[name], count, 0)


def suite(*names: str) -> list[str]:
    return [word for name in names for word in ("--suite", name)]
