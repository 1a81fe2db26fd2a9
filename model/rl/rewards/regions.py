"""Rewards of places in a picture: boxes, points, outlines (source: K2.5 paper, outcome visual RL).

The paper names grounding F1 with soft IoU matching, pointing F1 with Gaussian-weighted distance and optimal matching,
and the IoU of the masks of polygons. Their closed forms and all constants are ours.

Coordinates may have any unit, the same in answer and truth; the built-in families use hundredths of the picture.
Shapes: P predicted, T true regions; a mask is [height, width].
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

from model.rl.rewards.verdict import SCORE, Verdict, WrongTruth, f1

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
LARGEST = 1e9  # a coordinate beyond it is none
MOST = 512  # regions of an answer, and corners of all its polygons: an answer with more is none
SIGMA = 5.0  # of a point's Gaussian, in the unit of the coordinates: 0.88 at 2.5 of them, 0.14 at 10
SIZE = (100, 100)  # width and height of a mask, if the truth does not say
LONGEST_SIDE = 1024  # pixels of a mask
Box = Sequence[float]


def _numbers(text: str) -> list[float] | None:
    """The numbers in ``text``; None if one of them can be no coordinate."""
    values = [float(found) for found in _NUMBER.findall(text)]
    return values if all(abs(value) <= LARGEST for value in values) else None


def _tuples(text: str, size: int) -> list[list[float]] | None:
    """The numbers in ``text``, ``size`` to a tuple; None if they are no whole tuples, or more than MOST."""
    values = _numbers(text)
    if values is None or len(values) % size or len(values) > MOST * size:
        return None
    return [values[i : i + size] for i in range(0, len(values), size)]


def _truth(answer: Any, size: int) -> list[list[float]]:
    """The true regions: a text of numbers, ``size`` numbers, or a list of such lists; [] where there are none.

    Raises:
        WrongTruth: it is something else.
    """
    if isinstance(answer, str):
        found = _tuples(answer, size) or None
    else:
        values = _flat(answer)
        whole = values is not None and len(values) % size == 0 and len(values) <= MOST * size
        found = [values[i : i + size] for i in range(0, len(values), size)] if values is not None and whole else None
    if found is None:
        raise WrongTruth(f"it must be {size} numbers, or a list of at most {MOST} times {size} numbers")
    return found


def _flat(answer: Any) -> list[float] | None:
    """The coordinates in a list of numbers, or in a list of lists of numbers; None if it is something else."""
    if not isinstance(answer, list | tuple):
        return None
    cells = [cell for row in answer for cell in (row if isinstance(row, list | tuple) else [row])]
    numeric = all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in cells)
    return [float(cell) for cell in cells] if numeric and all(abs(cell) <= LARGEST for cell in cells) else None


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1); 0 for a box without area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    areas = [max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]) for box in (a, b)]
    if width <= 0 or height <= 0 or min(areas) == 0:
        return 0.0
    shared = width * height
    return float(shared / (areas[0] + areas[1] - shared))


def _matched(weights_PT: NDArray[np.float64]) -> float:
    """The largest sum of weights of a one-to-one matching."""
    rows, columns = linear_sum_assignment(weights_PT, maximize=True)
    return float(weights_PT[rows, columns].sum())


def grounding_f1(predicted: Sequence[Box], truth: Sequence[Box]) -> Verdict:
    """F1 with the summed IoU as true positives, under the one-to-one matching that makes this sum largest.

    For one predicted and one true box it is their IoU.
    """
    overlap_PT = np.array([[iou(p, t) for t in truth] for p in predicted])
    return f1(_matched(overlap_PT) if overlap_PT.size else 0.0, len(predicted), len(truth))


def box(response: str, answer: Any) -> Verdict:
    """Grounding: F1 with soft IoU. ``answer`` is "x0 y0 x1 y1", [x0, y0, x1, y1] or a list of such boxes."""
    truth, predicted = _truth(answer, 4), _tuples(response, 4)
    return _nothing() if predicted is None else grounding_f1(predicted, truth)


def pointing_f1(predicted: Sequence[Sequence[float]], truth: Sequence[Sequence[float]], sigma: float) -> Verdict:
    """F1 with exp(-d^2 / (2 sigma^2)) as a true positive at the distance d, under the best one-to-one matching."""
    if not predicted or not truth:
        return f1(0.0, len(predicted), len(truth))
    p_P2, t_T2 = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    squares_PT = np.square(p_P2[:, None] - t_T2[None]).sum(-1)
    return f1(_matched(np.exp(-squares_PT / (2.0 * sigma**2))), len(predicted), len(truth))


def points(response: str, answer: Any) -> Verdict:
    """Pointing: F1 with a Gaussian weight of the distance.

    Args:
        response: numbers, x and y of one point after the other.
        answer: "x y x y", [x, y], [[x, y], ...], or ``{"points": one of these, "sigma": of the Gaussian}``.
    """
    given = answer if isinstance(answer, Mapping) else {"points": answer}
    sigma = float(given.get("sigma", SIGMA))
    if not 0 < sigma <= LARGEST or set(given) - {"points", "sigma"} or "points" not in given:
        raise WrongTruth('it must be points, or {"points": ..., "sigma": above 0}')
    truth, predicted = _truth(given["points"], 2), _tuples(response, 2)
    return _nothing() if predicted is None else pointing_f1(predicted, truth, sigma)


def mask(polygons: Sequence[Sequence[Sequence[float]]], width: int, height: int) -> NDArray[np.bool_]:
    """The pixels whose centre lies within one of the polygons, by the even-odd rule: bool [height, width].

    A polygon that crosses itself has holes where it covers a pixel twice; one without area covers nothing. Pixel
    (x, y) is the square from (x, y) to (x + 1, y + 1). Shapes: H = height, V corners.
    """
    covered = np.zeros((height, width), np.bool_)
    y_H1 = np.arange(height)[:, None] + 0.5
    for polygon in polygons:
        x0_V, y0_V = np.asarray(polygon, np.float64).T
        x1_V, y1_V = np.roll(x0_V, -1), np.roll(y0_V, -1)
        rows, sides = np.nonzero((y0_V <= y_H1) != (y1_V <= y_H1))  # which side cuts which row of centres
        slopes = (x1_V - x0_V)[sides] / (y1_V - y0_V)[sides]
        cuts = x0_V[sides] + (rows + 0.5 - y0_V[sides]) * slopes
        # A pixel is inside if an odd number of cuts lies left of its centre.
        firsts = np.clip(np.ceil(cuts - 0.5), 0, width).astype(np.int64)
        flips = np.bincount(rows * (width + 1) + firsts, minlength=height * (width + 1)).reshape(height, width + 1)
        covered |= np.cumsum(flips[:, :width], axis=1) % 2 == 1
    return covered


def polygon(response: str, answer: Any) -> float:
    """Outlining: the IoU of the masks of all polygons of response and truth.

    Args:
        response: one polygon per line (or between semicolons), x and y of three or more corners; lines without numbers
            do not count.
        answer: "x y x y x y ..." in the same form, [x, y, x, y, ...], a list of such lists, or ``{"polygons": one of
            these, "size": [width, height]}`` of the mask in the unit of the coordinates; SIZE if left out.
    """
    given = answer if isinstance(answer, Mapping) else {"polygons": answer}
    width, height = map(int, given.get("size", SIZE))
    if not 1 <= min(width, height) <= max(width, height) <= LONGEST_SIDE or set(given) - {"polygons", "size"}:
        raise WrongTruth(f'it must be polygons, or {{"polygons": ..., "size": two sides of 1 to {LONGEST_SIDE}}}')
    truth = _true_polygons(given["polygons"])
    theirs = mask(truth, width, height)
    if not theirs.any():
        raise WrongTruth(f"its polygons cover no pixel of {width} x {height}")
    predicted = _polygons(response)
    if not predicted:
        return 0.0
    mine = mask(predicted, width, height)
    return float((mine & theirs).sum() / (mine | theirs).sum())


def _polygons(text: str) -> list[list[list[float]]] | None:
    """Corners of each polygon; None if one is malformed, or all together have more than MOST corners."""
    found: list[list[list[float]]] = []
    for line in re.split(r"[\n;]", text):
        if not _NUMBER.search(line):
            continue
        corners = _tuples(line, 2)
        if corners is None or len(corners) < 3:
            return None
        found.append(corners)
        if sum(map(len, found[-MOST:])) > MOST:
            return None
    return found


def _true_polygons(given: Any) -> list[list[list[float]]]:
    if isinstance(given, str):
        found = _polygons(given)
    else:
        several = (
            isinstance(given, list | tuple) and bool(given) and all(isinstance(row, list | tuple) for row in given)
        )
        found = [_truth(row, 2) for row in (given if several else [given])]
    if not found or any(len(corners) < 3 for corners in found):
        raise WrongTruth("its polygons must have three or more corners each")
    return found


def _nothing() -> Verdict:
    return dict.fromkeys((SCORE, "precision", "recall"), 0.0)
