"""Rewards whose judge is a library of others: ``math`` asks math-verify, ``reasoning_gym`` the problem's own scorer.

Both read what a policy wrote with SymPy or Python's ``eval``, so a response may hang them, fill the memory or run code.
They therefore run in the sandbox, one process per answer, whose processor time and memory the kernel bounds
(`model.rl.rewards.examiner`): neither signals nor threads are needed. What ends that process earns nothing.

What is asked and answered crosses as JSON. This module has the outer side, and imports neither library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from model.boundary.errors import MoonflowError
from model.rl.rewards.verdict import SCORE, Verdict, WrongTruth

MATH, REASONING_GYM = "math", "reasoning_gym"
LONGEST_EXPRESSION = 2000  # characters of an answer that is examined (ours): a longer one earns nothing
DEEPEST = 40  # brackets within brackets of such an answer (ours): parsers are slow at more
FAULT = "fault"  # what is wrong with the true answer


def checked_truth(answer: Any) -> str:
    """The true answer of ``math``: a number, or a text that math-verify reads, such as LaTeX.

    Raises:
        WrongTruth: it is something else, or too long.
    """
    number = isinstance(answer, int | float) and not isinstance(answer, bool) and math.isfinite(answer)
    text = str(answer).strip() if number or isinstance(answer, str) else ""
    if not 0 < len(text) <= LONGEST_EXPRESSION:
        raise WrongTruth(f"it must be a number, or an expression of at most {LONGEST_EXPRESSION} characters")
    return text


def checked_problem(answer: Any) -> dict[str, Any]:
    """The true answer of ``reasoning_gym``: ``{"dataset": its name, "entry": the problem that it made}``.

    The entry has what the scorer reads, as JSON can hold it: ``question``, ``answer``, ``metadata``.

    Raises:
        WrongTruth: it has another form.
    """
    form = isinstance(answer, Mapping) and set(answer) == {"dataset", "entry"} and isinstance(answer["dataset"], str)
    if not form or not isinstance(answer["entry"], Mapping) or not {"answer", "metadata"} <= set(answer["entry"]):
        raise WrongTruth('it must be {"dataset": a name of reasoning-gym, "entry": {"question", "answer", "metadata"}}')
    return dict(answer)


def question(name: str, response: str, answer: Any) -> str | None:
    """What the examiner is asked; None if the response earns nothing without asking."""
    if not 0 < len(response.strip()) <= LONGEST_EXPRESSION or _depth(response) > DEEPEST:
        return None
    return json.dumps([name, response, answer])


def _depth(text: str) -> int:
    """How deep brackets of any kind are nested, closed or not."""
    steps = (1 if character in "([{" else -1 if character in ")]}" else 0 for character in text)
    return max(accumulate(steps, initial=0))


def verdict(said: str) -> Verdict:
    """The verdict in what the examiner's session said; no answer earns 0.

    Raises:
        MoonflowError: the true answer cannot be examined.
    """
    try:
        found = json.loads(said)
    except ValueError:  # the session has ended: out of time or memory, or a forbidden call
        return {SCORE: 0.0}
    if isinstance(found, dict) and isinstance(found.get(FAULT), str):
        raise MoonflowError(f"the true answer cannot be examined: {found[FAULT]}")
    value = found.get(SCORE) if isinstance(found, dict) else None
    if not isinstance(value, int | float) or not math.isfinite(value):
        return {SCORE: 0.0}
    return {SCORE: min(1.0, max(0.0, float(value)))}
