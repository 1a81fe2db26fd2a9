"""What a reward says of an answer: a score in [0, 1], alone or with named parts (source: ours)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SCORE = "score"
Verdict = dict[str, float]
"""``score`` and the parts that it is made of, all in [0, 1]."""

Reward = Callable[[str, Any], float | Verdict]
"""(response, true answer) -> the score, alone or with its parts.

It raises ValueError, TypeError, AttributeError, ArithmeticError or LookupError if the *true* answer has a wrong form,
and nothing because of the response, whatever that is.
"""


class WrongTruth(ValueError):
    """The true answer of a task has a form that its reward cannot compare with; the message says which it must have."""


def f1(hits: float, predicted: float, truth: float) -> Verdict:
    """F1, ``precision`` and ``recall``; all are 1 if nothing is to be found and nothing is given, else 0.

    Args:
        hits: how many of both are right, also in part.
        predicted, truth: how many are given, and how many there are.
    """
    if not predicted or not truth:
        return dict.fromkeys((SCORE, "precision", "recall"), float(not predicted and not truth))
    parts = {SCORE: 2.0 * hits / (predicted + truth), "precision": hits / predicted, "recall": hits / truth}
    return {name: min(1.0, value) for name, value in parts.items()}
