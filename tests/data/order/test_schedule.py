from __future__ import annotations

import pytest

from model.boundary.errors import MoonflowError
from model.data.order.family_shares import TEXT, VISION
from model.data.order.mixtures import mixtures
from model.data.order.schedule import Schedule, fusion

ARMS = {"early": (0.1, 0.0), "mid": (0.2, 0.5), "late": (0.5, 0.8)}  # ratio and start of vision, K2.5 Table 1


def vision(shares: dict[str, float]) -> float:
    return sum(shares[name] for name in VISION)


@pytest.mark.parametrize("arm", ARMS)
def test_the_arms_of_table_1_have_one_budget(arm: str) -> None:
    share, start = ARMS[arm]
    schedule = fusion(share, start)
    assert vision(schedule.budget()) == pytest.approx(0.1)
    assert sum(schedule.budget().values()) == pytest.approx(1.0)
    assert vision(schedule.shares(start)) == pytest.approx(share) == vision(schedule.shares(0.999))
    assert not start or vision(schedule.shares(start - 1e-9)) == 0


def test_shares_go_in_a_straight_line_if_asked() -> None:
    schedule = Schedule([(0.0, {"a": 1}), (0.5, {"a": 1, "b": 3}), (1.0, {"b": 1})], between="linear")
    assert schedule.shares(0.25) == pytest.approx({"a": 0.625, "b": 0.375})
    assert schedule.shares(0.75) == pytest.approx({"a": 0.125, "b": 0.875})
    assert schedule.shares(1.0) == pytest.approx({"a": 0.0, "b": 1.0})
    by_hand = [schedule.shares((n + 0.5) / 1000)["b"] for n in range(1000)]
    assert schedule.budget()["b"] == pytest.approx(sum(by_hand) / 1000)
    assert schedule.budget(0.2, 0.6)["b"] == pytest.approx(sum(by_hand[200:600]) / 400)


@pytest.mark.parametrize(
    "points",
    [[], [(0.1, {"a": 1})], [(0.0, {"a": 1}), (0.0, {"a": 1})], [(0.0, {"a": 1}), (1.5, {"a": 1})], [(0.0, {"a": 0})],
     [(0.0, {"a": 2, "b": -1})], [(0.0, {})]],
)  # fmt: skip
def test_a_schedule_that_makes_no_sense_is_refused(points: list[tuple[float, dict[str, float]]]) -> None:
    with pytest.raises(MoonflowError, match="schedule|mixture"):
        Schedule(points)


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(MoonflowError, match=r"\[0, 1\], not 1.2"):
        fusion(1.2, 0.5)


@pytest.mark.parametrize("start", [0.0, 0.2, 0.4, 0.6])
def test_what_vision_consists_of_changes_at_its_moment(start: float) -> None:
    (_, first), (moment, then) = mixtures("broad").vision
    schedule = fusion(0.55, start, TEXT, mixtures("broad").vision)
    for progress in (0.0, moment - 1e-9, moment, 0.999):
        mixture, share = first if progress < moment else then, 0.55 if progress >= start else 0.0
        shares = schedule.shares(progress)
        whole = sum(mixture.values())
        expected = {name: share * weight / whole for name, weight in mixture.items()}
        assert {name: shares[name] for name in expected} == pytest.approx(expected)
        assert sum(shares[name] for name in TEXT) == pytest.approx(1 - share)
    assert schedule.changes and not fusion(0.55, 0.0).changes


def test_moments_of_vision_that_do_not_rise_are_refused() -> None:
    with pytest.raises(MoonflowError, match=r"must rise.*\[0.5, 0.2\]"):
        fusion(0.5, 0.0, TEXT, [(0.5, VISION), (0.2, VISION)])
