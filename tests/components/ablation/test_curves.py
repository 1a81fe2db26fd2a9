"""The curves of an ablation's arms."""

from __future__ import annotations

from components.ablation.curves import curves, curves_of_seeds

EVENTS = {
    "some_arm-mid-0": [{"step": 0, "x": 1.0}, {"step": 1, "x": 3.0}],
    "some_arm-mid-1": [{"step": 1, "x": 5.0}, {"step": 2, "y": 1.0}],
    "other_arm-mid-2": [{"step": 1, "x": 100.0}],
    "some_arm-late-0": [{"step": 4, "x": 2.0}],
}


def test_curves_are_means_of_what_all_seeds_have() -> None:
    assert curves(EVENTS, "some_arm", ("early", "late", "mid"), "x") == {"late": [(4, 2.0)], "mid": [(1, 4.0)]}
    assert list(curves(EVENTS, "some_arm", ("mid", "late"), "x")) == ["mid", "late"]


def test_each_seed_has_a_curve_of_its_own() -> None:
    assert curves_of_seeds(EVENTS, "some_arm", "mid", "x") == {"seed 0": [(0, 1.0), (1, 3.0)], "seed 1": [(1, 5.0)]}
    assert curves_of_seeds(EVENTS, "some_arm", "mid", "z") == {}
