from __future__ import annotations

import pytest

from model.swarm.schedule import SubAgentSchedule


def test_small_sub_agents_come_first_and_larger_ones_later() -> None:
    schedule = SubAgentSchedule.of_shares(12, 0.25, 0.75)
    assert [schedule.share(t) for t in range(12)] == pytest.approx(
        [0, 0, 0, 0, 1 / 6, 2 / 6, 0.5, 4 / 6, 5 / 6, 1, 1, 1]
    )
    for iteration in (3, 6, 9):
        drawn = [schedule.larger(iteration, f"task-{n}") for n in range(400)]
        assert drawn == [schedule.larger(iteration, f"task-{n}") for n in range(400)]
        assert sum(drawn) / 400 == pytest.approx(schedule.share(iteration), abs=0.06)


def test_a_schedule_without_a_slope_changes_at_once() -> None:
    assert [SubAgentSchedule(2, 2).share(t) for t in range(4)] == [0, 0, 1, 1]
    assert SubAgentSchedule(0, 0).share(0) == 1.0
