"""Boxes, points and outlines against values by hand and references that try everything."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from model.rl.rewards.regions import MOST, box, grounding_f1, iou, mask, pointing_f1, points, polygon


def best_by_trying(weights: np.ndarray) -> float:
    """The largest sum of a one-to-one matching, over all permutations."""
    weights = weights if len(weights) <= weights.shape[1] else weights.T
    return max(
        sum(weights[row, column] for row, column in enumerate(chosen))
        for chosen in permutations(range(weights.shape[1]), len(weights))
    )


def test_box_is_the_iou() -> None:
    # 10x10 and 10x10, shifted by 5: shared 50, union 150.
    assert box("5 0 15 10", "0 0 10 10")["score"] == pytest.approx(1 / 3)
    assert box("x=0 y=0, (10, 10)", [0, 0, 10, 10])["score"] == 1.0
    assert box("0.5 0 1.5 1", [[0.0, 0.0, 1.0, 1.0]])["score"] == pytest.approx(1 / 3)
    for nothing in ("20 20 30 30", "10 10 0 0", "1 2 3", "", "0 0 10 0"):
        assert box(nothing, "0 0 10 10")["score"] == 0.0
    assert box("none", [])["score"] == 1.0 and box("1 2 3", [])["score"] == 0.0 == box("1 2 3 4", [])["score"]


def test_grounding_f1_by_hand() -> None:
    a, b = [0, 0, 10, 10], [5, 0, 15, 10]
    assert grounding_f1([b, a], [a, b])["score"] == pytest.approx(1.0)
    # one of two boxes found exactly: 2 * 1 / (1 + 2)
    assert grounding_f1([a], [a, [50, 50, 60, 60]]) == pytest.approx({"score": 2 / 3, "precision": 1, "recall": 1 / 2})
    assert grounding_f1([a, [90, 90, 99, 99]], [a, b])["score"] == pytest.approx(0.5)
    # p0 overlaps t0 by 1/3 and t1 fully; p1 overlaps only t1 by 1/3: full for p0 wins over 1/3 + 1/3.
    assert grounding_f1([b, [10, 0, 20, 10]], [a, b])["score"] == pytest.approx(2 * 1.0 / 4)
    assert grounding_f1([], [a])["score"] == 0.0
    assert grounding_f1([], [])["score"] == 1.0


def covered(box: np.ndarray) -> np.ndarray:
    grid = np.zeros((24, 24), bool)
    grid[box[1] : box[3], box[0] : box[2]] = True
    return grid


def test_grounding_f1_is_that_of_counted_pixels_and_the_best_permutation() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        corners = [np.sort(rng.integers(0, 24, (int(rng.integers(1, 6)), 2, 2)), axis=1) for _ in range(2)]
        mine, theirs = (found.reshape(-1, 4) for found in corners)
        grids = [[covered(one) for one in found] for found in (mine, theirs)]
        overlaps = np.array([[(p & t).sum() / max(1, (p | t).sum()) for t in grids[1]] for p in grids[0]])
        np.testing.assert_allclose([[iou(p.tolist(), t.tolist()) for t in theirs] for p in mine], overlaps)
        hits = best_by_trying(overlaps)
        expected = {"score": 2 * hits / (len(mine) + len(theirs)), "precision": hits / len(mine),
                    "recall": hits / len(theirs)}  # fmt: skip
        assert box(" ".join(map(str, mine.ravel())), theirs.tolist()) == pytest.approx(expected)


def test_pointing_f1_by_hand() -> None:
    assert points("(30, 40)", [30, 40])["score"] == 1.0
    # At 3 and 4 from it: d = 5 = sigma, exp(-1/2).
    assert points("33 44", "30 40")["score"] == pytest.approx(np.exp(-0.5))
    assert points("33 44", {"points": [[30, 40]], "sigma": 10})["score"] == pytest.approx(np.exp(-0.125))
    # One of two points: precision 1, recall 1/2.
    assert points("30 40", [[30, 40], [90, 90]]) == pytest.approx({"score": 2 / 3, "precision": 1, "recall": 0.5})
    # Both near one point: only one of them counts.
    assert points("30 40 30 40", [30, 40])["score"] == pytest.approx(2 / 3)
    assert points("30", [30, 40])["score"] == points("none", [30, 40])["score"] == points("1 2", [])["score"] == 0.0
    assert points("there are none", [])["score"] == 1.0
    # Points all over the picture do not pay: 1 hit of 100 for one point.
    grid = " ".join(f"{x} {y}" for x in range(0, 100, 10) for y in range(0, 100, 10))
    assert points(grid, [30, 40])["score"] == pytest.approx(2 / 101)
    assert points("30 40 " * (MOST + 1), [30, 40])["score"] == 0.0


def test_pointing_f1_takes_the_best_permutation() -> None:
    rng = np.random.default_rng(1)
    for _ in range(40):
        mine, theirs = (rng.uniform(0, 20, (int(rng.integers(1, 6)), 2)) for _ in range(2))
        weights = np.array(
            [[np.exp(-((p[0] - t[0]) ** 2 + (p[1] - t[1]) ** 2) / (2 * 4.0**2)) for t in theirs] for p in mine]
        )
        expected = 2 * best_by_trying(weights) / (len(mine) + len(theirs))
        assert pointing_f1(mine.tolist(), theirs.tolist(), 4.0)["score"] == pytest.approx(expected)


def inside(x: float, y: float, corners: np.ndarray) -> bool:
    """Whether a ray from a point to the right crosses the outline an odd number of times."""
    crossings = 0
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (x1 - x0) * (y - y0) / (y1 - y0):
            crossings += 1
    return crossings % 2 == 1


def test_a_mask_has_the_pixels_whose_centres_are_inside_also_of_outlines_that_cross_themselves() -> None:
    rng = np.random.default_rng(2)
    for corners in (3, 4, 5, 7, 9):
        for _ in range(3):
            outline = rng.uniform(-4, 16, (corners, 2))
            expected = [[inside(x + 0.5, y + 0.5, outline) for x in range(12)] for y in range(9)]
            np.testing.assert_array_equal(mask([outline], 12, 9), expected)
    bow = [[0, 0], [10, 10], [10, 0], [0, 10]]
    assert 0.4 < mask([bow], 10, 10).mean() < 0.6
    # A square within a square, as one outline and as two polygons: the first has a hole.
    ring = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0], [3, 3], [7, 3], [7, 7], [3, 7], [3, 3]]
    assert mask([ring], 10, 10).sum() == 84
    assert mask([ring[:5], ring[5:]], 10, 10).sum() == 100


def test_polygon_is_the_iou_of_the_masks() -> None:
    square = [10, 10, 60, 10, 60, 60, 10, 60]
    assert polygon("10 10, 60 10, 60 60, 10 60", square) == polygon("60 60 10 60 10 10 60 10", square) == 1.0
    # Shifted by half of its side: shared 1/2, union 3/2.
    assert polygon("35 10 85 10 85 60 35 60", square) == pytest.approx(1 / 3)
    # Its half below the diagonal: 50 * 49 / 2 centres, or with the diagonal 50 * 51 / 2.
    assert polygon("10 10 60 60 10 60", square) == pytest.approx(0.5, abs=0.011)
    two = [square, [70, 70, 90, 70, 90, 90, 70, 90]]
    assert polygon("10 10 60 10 60 60 10 60\n70 70 90 70 90 90 70 90", two) == 1.0
    assert polygon("Here: \n10 10 60 10 60 60 10 60", two) == pytest.approx(2500 / 2900)
    assert polygon("1 1 3 1 3 3 1 3", {"polygons": "1 1 3 1 3 3 1 3", "size": [4, 4]}) == 1.0
    for nothing in ("", "none", "10 10 60 10", "10 10 60 10 60", "10 10 60 60 35 35", "10 10 10 10 10 10",
                    "70 70 90 70 90 90 70 90", "10 10 60 10 60 60 10 60\n1 2"):  # fmt: skip
        assert polygon(nothing, square) == 0.0
