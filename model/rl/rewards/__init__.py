"""Verifiable outcome rewards in [0, 1], by name: an answer compared with the truth (source: K2.5 paper; forms: ours).

A response never raises: whatever it is, it gets a score in bounded time. The README of `model.rl` lists all rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from model.boundary.errors import MoonflowError
from model.rl.rewards.charts import values
from model.rl.rewards.examined import MATH, REASONING_GYM, checked_problem, checked_truth
from model.rl.rewards.regions import box, points, polygon
from model.rl.rewards.tables import item_f1, row_f1, table_f1
from model.rl.rewards.texts import edit, exact, last_line, number, says
from model.rl.rewards.verdict import SCORE, Reward, Verdict

MAX_CHARACTERS = 65_536  # of a response: a longer one earns nothing, and costs no time (ours)
TESTS = "tests"  # runs the response as a program: see model.rl.verifier

REWARDS: Mapping[str, Reward] = {
    "exact": exact,
    "last_line": last_line,
    "number": number,
    "edit": edit,
    "box": box,
    "points": points,
    "polygon": polygon,
    "values": values,
    "says": says,
    "table_f1": table_f1,
    "item_f1": item_f1,
    "row_f1": row_f1,
}
"""The rewards that compare texts, here and at once."""

EXAMINED: Mapping[str, Callable[[Any], Any]] = {MATH: checked_truth, REASONING_GYM: checked_problem}
"""The rewards that ask a library, in the sandbox (`model.rl.verifier`); each with the check of a true answer."""

NAMES = (*REWARDS, *EXAMINED, TESTS)


def known(name: str) -> str:
    """The name of a reward.

    Raises:
        MoonflowError: there is no such reward.
    """
    if name not in NAMES:
        raise MoonflowError(f"unknown reward {name!r}; choose one of {', '.join(NAMES)}")
    return name


def judge(name: str, response: str, answer: Any) -> Verdict:
    """What a reward of REWARDS says of a response: ``score``, and its parts if it has them.

    A score of 1 means the same string, number, region or table.

    Raises:
        MoonflowError: there is no such reward, or it runs in the sandbox.
        ValueError, TypeError, AttributeError, ArithmeticError, LookupError: the true answer has another form.
    """
    if known(name) not in REWARDS:
        raise MoonflowError(f"reward {name!r} needs the sandbox: model.rl.verifier gives its verdict")
    if len(response) > MAX_CHARACTERS:
        return {SCORE: 0.0}
    found = REWARDS[name](response, answer)
    return found if isinstance(found, dict) else {SCORE: found}


def score(name: str, response: str, answer: Any) -> float:
    """The score alone; see `judge`."""
    return judge(name, response, answer)[SCORE]
