from __future__ import annotations

import pytest

from model.data.mixtures import TEXT, VISION
from model.data.schedule import Schedule
from model.errors import MoonflowError

ARMS = {"early": [(0.0, 0.1)], "mid": [(0.0, 0.0), (0.5, 0.2)], "late": [(0.0, 0.0), (0.8, 0.5)]}  # K2.5 Table 1


def vision(shares: dict[str, float]) -> float:
    return sum(shares[name] for name in VISION)


@pytest.mark.parametrize("arm", ARMS)
def test_the_arms_of_table_1_have_one_budget(arm: str) -> None:
    schedule = Schedule.of_vision(ARMS[arm], TEXT, VISION)
    assert vision(schedule.budget()) == pytest.approx(0.1)
    assert sum(schedule.budget().values()) == pytest.approx(1.0)
    start, share = ARMS[arm][-1]
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
    with pytest.raises(MoonflowError, match="0.5.*1.2"):
        Schedule.of_vision([(0.0, 0.0), (0.5, 1.2)], TEXT, VISION)
