"""The verdict on a claim: how many seeds it takes, and what is said of cells without a result."""

from __future__ import annotations

import pytest

from components.ablation.claim import LEAST_SEEDS, Claim, above_zero, in_each_seed, with_no_result
from components.ablation.spread import over_seeds


@pytest.mark.parametrize(
    ("seeds", "met", "holds", "told"),
    [
        (0, None, None, "x: no verdict from 0 seeds, it takes 3 or more"),
        (1, True, None, "x: no verdict from 1 seed, it takes 3 or more (y)"),
        (1, False, None, "x: no verdict from 1 seed, it takes 3 or more (y)"),
        (2, True, None, "x: no verdict from 2 seeds, it takes 3 or more (y)"),
        (LEAST_SEEDS, True, True, "x: holds (y)"),
        (LEAST_SEEDS, False, False, "x: does not hold (y)"),
        (3, None, None, "x: no verdict (y)"),
    ],
)
def test_too_few_seeds_give_no_verdict_whatever_they_show(
    seeds: int, met: bool | None, holds: bool | None, told: str
) -> None:
    claim = Claim("x", seeds, met, "y" if seeds else "")
    assert claim.holds is holds and str(claim) == told


def test_a_gain_holds_if_its_interval_lies_above_zero() -> None:
    assert above_zero("x", None) == Claim("x")
    assert above_zero("x", over_seeds({0: 9.0})).met is None
    assert above_zero("x", over_seeds({0: 9.0, 1: 9.1})).met is True
    assert above_zero("x", over_seeds({0: 9.0, 1: 9.1})).holds is None, "two seeds are too few"
    assert above_zero("x", over_seeds({0: 9.0, 1: 9.1, 2: 9.0})).holds is True
    assert above_zero("x", over_seeds({0: 1.0, 1: 9.0, 2: 5.0})).holds is False


def test_a_claim_about_each_seed_is_refuted_by_one_and_open_while_one_of_its_arms_has_no_result() -> None:
    for met, no_result, shown in (
        (True, [], True), (True, ["narrow-2"], True), (True, ["text-2"], None), (False, ["text-2"], False),
    ):  # fmt: skip
        assert in_each_seed(met, ("text",), no_result) is shown


def test_the_figures_name_the_cells_without_a_result() -> None:
    claims = [Claim("x", 2, True, "y"), Claim("z")]
    assert with_no_result(claims, []) == claims
    first, second = with_no_result(claims, ["text-2", "narrow-2"])
    assert (first.figures, second.figures) == ("y; no result: text-2, narrow-2", "no result: text-2, narrow-2")
