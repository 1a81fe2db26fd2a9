"""Verifiable outcome rewards in [0, 1]: the text of a response compared with the true answer.

The paper names them (section on outcome visual RL: counting by absolute difference, OCR by normalised edit distance,
grounding F1 with soft IoU matching) but not their exact form. The closed forms are ours.

Shapes: P predicted boxes, T true boxes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from model.boundary.errors import MoonflowError

_INTEGER = re.compile(r"-?\d+")
TESTS = "tests"  # the one reward that runs a program: see model.rl.verifier
MAX_DIGITS = 300  # of an integer in a response: one with more exceeds every float, and is no count or pixel (ours)
Box = Sequence[float]


def normalise(text: str) -> str:
    """Lower case, single spaces, no spaces or punctuation around it. Rewards compare texts in this form."""
    return " ".join(text.casefold().split()).strip(" .,;:!\"'`")


def exact(response: str, answer: Any) -> float:
    """1 if the normalised strings are equal, else 0."""
    return float(normalise(response) == normalise(str(answer)))


def number(response: str, answer: Any) -> float:
    """Counting: 1 - |n - truth| / max(1, |truth|), at least 0, for a response with exactly one integer n; else 0."""
    found = _integers(response)
    if found is None or len(found) != 1:  # or the best of a list of guesses would count
        return 0.0
    truth = int(answer)
    return max(0.0, 1.0 - abs(found[0] - truth) / max(1, abs(truth)))


def _integers(text: str) -> list[int] | None:
    """The integers in ``text``; None if one of them has more than MAX_DIGITS digits."""
    found = _INTEGER.findall(text)
    return None if any(len(digits) > MAX_DIGITS for digits in found) else [int(digits) for digits in found]


def edit(response: str, answer: Any) -> float:
    """OCR: 1 - Levenshtein distance / length of the longer of the two normalised strings."""
    left, right = normalise(response), normalise(str(answer))
    if not left and not right:
        return 1.0
    previous = list(range(len(right) + 1))
    for i, a in enumerate(left, start=1):
        current = [i]
        for j, b in enumerate(right, start=1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (a != b)))
        previous = current
    return 1.0 - previous[-1] / max(len(left), len(right))


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1); 0 for a box without area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    areas = [max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]) for box in (a, b)]
    if width <= 0 or height <= 0 or min(areas) == 0:
        return 0.0
    shared = width * height
    return float(shared / (areas[0] + areas[1] - shared))


def grounding_f1(predicted: Sequence[Box], truth: Sequence[Box]) -> float:
    """F1 with the summed IoU as true positives, under the one-to-one matching that makes this sum largest.

    For one predicted and one true box it is their IoU.
    """
    if not predicted or not truth:
        return float(not predicted and not truth)
    overlap_PT = np.array([[iou(p, t) for t in truth] for p in predicted])
    rows, columns = linear_sum_assignment(overlap_PT, maximize=True)
    return float(2.0 * overlap_PT[rows, columns].sum() / (len(predicted) + len(truth)))


def parse_boxes(text: str) -> list[list[int]]:
    """The integers in ``text``, four per box (x0, y0, x1, y1).

    Returns no boxes if their number is not a multiple of four, or if one of them has more than MAX_DIGITS digits.
    """
    values = _integers(text) or []
    return [values[i : i + 4] for i in range(0, len(values), 4)] if len(values) % 4 == 0 else []


def box(response: str, answer: Any) -> float:
    """Grounding: F1 with soft IoU. ``answer`` is "x0 y0 x1 y1", [x0, y0, x1, y1] or a list of such boxes."""
    truth = parse_boxes(answer if isinstance(answer, str) else str(answer))
    return grounding_f1(parse_boxes(response), truth)


def parse_table(text: str) -> dict[str, str]:
    """Lines ``item: value`` as a dictionary of normalised strings; other lines are ignored, the last repeat counts."""
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {normalise(item): normalise(value) for item, value in pairs}


def says(response: str, answer: Any) -> float:
    """Open answers: 1 if the response has the words of ``answer["says"]`` and none of ``answer["not"]``, else 0.

    Words do not count inside of other words, nor does case. What the answer has besides is left to a judge.

    Args:
        answer: ``{"says": text, "not": [text, ...]}``; a list, or the best of several guesses would count.
    """
    found = [_has_words(response, str(words)) for words in (answer["says"], *answer["not"])]
    return float(found[0] and not any(found[1:]))


def _has_words(text: str, words: str) -> bool:
    joined = r"\s+".join(re.escape(word) for word in words.casefold().split())
    return re.search(rf"(?<!\w){joined}(?!\w)", text.casefold()) is not None


def table_f1(response: str, answer: Any) -> float:
    """Wide search: F1 over (item, value) pairs. ``answer`` is {"item": "value"}."""
    predicted = parse_table(response)
    truth = {normalise(item): normalise(str(value)) for item, value in answer.items()}
    if not predicted or not truth:
        return float(not predicted and not truth)
    hits = sum(truth.get(item) == value for item, value in predicted.items())
    return 2.0 * hits / (len(predicted) + len(truth))


def _rows(text: str, columns: Sequence[str]) -> dict[str, list[str]]:
    """Lines ``key|value|...`` as rows of normalised cells by their first cell, the key; the first row of a key counts.

    A line may begin and end with ``|``, as in Markdown. A head with the names of the columns and a rule of dashes are
    no rows. Figures lose the commas between their digits.
    """
    head = [normalise(column) for column in columns]
    rows: dict[str, list[str]] = {}
    for line in text.splitlines():
        cells = [_cell(cell) for cell in line.strip().strip("|").split("|")]
        if "|" in line and cells != head and any(set(cell) - set("-: ") for cell in cells):
            rows.setdefault(cells[0], cells)
    return rows


def _cell(text: str) -> str:
    cell = normalise(text)
    return cell.replace(",", "") if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", cell) else cell


def _table_f1(response: str, answer: Any, whole_rows: bool) -> float:
    columns = len(answer["columns"])
    predicted, truth = _rows(response, answer["columns"]), {}
    for row in answer["rows"]:
        truth[_cell(str(row[0]))] = [_cell(str(cell)) for cell in row]
    hits = 0
    for key, row in truth.items():
        found = predicted.get(key, [])
        right = sum(mine == other for mine, other in zip(row, found, strict=False))
        right = right if len(found) <= columns else 0
        hits += right == columns if whole_rows else right
    units = (len(predicted) + len(truth)) * (1 if whole_rows else columns)
    return 2.0 * hits / units if units else 1.0


def item_f1(response: str, answer: Any) -> float:
    """Wide search, by cells: F1 over the cells of a table whose rows are matched by their key, the first cell.

    As WideSearch scores items (arXiv 2508.07999, and its published evaluation): the key of a matched row is a right
    cell too, every row counts as many cells as there are columns, and of several rows with one key the first is taken.
    Cells are compared as normalised texts, where WideSearch also has a judge for free text.

    Args:
        response: a line ``key|value|...`` a row.
        answer: ``{"columns": [names], "rows": [[key, value, ...], ...]}``.
    """
    return _table_f1(response, answer, whole_rows=False)


def row_f1(response: str, answer: Any) -> float:
    """Wide search, by rows: as `item_f1`, but a row counts once, and only if all of its cells are right."""
    return _table_f1(response, answer, whole_rows=True)


REWARDS: dict[str, Callable[[str, Any], float]] = {
    "exact": exact,
    "number": number,
    "edit": edit,
    "box": box,
    "says": says,
    "table_f1": table_f1,
    "item_f1": item_f1,
    "row_f1": row_f1,
}


def score(name: str, response: str, answer: Any) -> float:
    """The reward ``name`` of a response; a full one means the same string, number, box or table.

    Raises:
        MoonflowError: there is no such reward.
    """
    if name not in REWARDS:
        raise MoonflowError(f"unknown reward {name!r}; choose one of {', '.join((*REWARDS, TESTS))}")
    return REWARDS[name](response, answer)
