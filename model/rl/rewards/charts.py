"""Reward of values that were read off a chart (source: K2.5 paper, chart and document tasks; the form: ours).

A value is right within a share of the truth, as ChartQA scores it (arXiv 2203.10244: 5%).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from model.rl.rewards.texts import normalise
from model.rl.rewards.verdict import Verdict, WrongTruth, f1

TOLERANCE = 0.05
_DIGIT = re.compile(r"\d")
_VALUE = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?:[eE][-+]?\d{1,3})?")


def read_value(text: str) -> float | None:
    """The one number of a text, whose thousands may have commas; None if there is none, or several.

    What surrounds it, such as a unit or a percent sign, does not count.
    """
    found = [match[0] for match in _VALUE.finditer(text) if _DIGIT.search(match[0])]
    if len(found) != 1:
        return None
    try:
        value = float(found[0].replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def close(value: float, truth: float, tolerance: float) -> bool:
    """Whether a value is within ``tolerance * |truth|`` of the truth."""
    return abs(value - truth) <= tolerance * abs(truth) * (1 + 1e-12)  # 0.95 is within 5% of 1


def values(response: str, answer: Any) -> float | Verdict:
    """Chart values: 1 or 0 for a single value, F1 over (label, value) pairs for several.

    Args:
        response: one number; or a line ``label: value`` for each pair. A second line with the same label is a pair
            too many. Lines without a figure after the colon do not count.
        answer: a number, {"label": number, ...}, or ``{"values": one of these, "tolerance": share of the truth}``;
            TOLERANCE if left out.
    """
    wrapped = isinstance(answer, Mapping) and set(answer) == {"values", "tolerance"}
    truth, tolerance = (answer["values"], float(answer["tolerance"])) if wrapped else (answer, TOLERANCE)
    if not 0 <= tolerance < 1:
        raise WrongTruth("its tolerance must be a share from 0 to 1")
    if not isinstance(truth, Mapping):
        one, said = _number(truth), read_value(response)
        return float(said is not None and close(said, one, tolerance))
    wanted = {normalise(str(label)): _number(value) for label, value in truth.items()}
    parted = [line.rpartition(":") for line in response.splitlines()]
    pairs = [(normalise(label), read_value(text)) for label, _, text in parted if _DIGIT.search(text) and label]
    hits = {
        label for label, said in pairs if label in wanted and said is not None and close(said, wanted[label], tolerance)
    }
    return f1(len(hits), len(pairs), len(wanted))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise WrongTruth(f"{value!r} is no number")
    return float(value)
