from __future__ import annotations

import math
from dataclasses import replace

import pytest

from model.rl.environment import Episode
from model.swarm.critical_steps import CriticalSteps
from model.swarm.reward import SwarmReward, finish_reward, parallel_reward
from tests.samples import make_episode


def episode(parallelism: float, assigned: float, finished: float, reward: float) -> Episode:
    figures = {"parallelism": parallelism, "subtasks_assigned": assigned, "subtasks_finished": finished,
               "sub_agents_failed": 0.0}  # fmt: skip
    return make_episode(reward=reward, metrics=figures | {"critical_steps": 5.0})


def test_the_reward_is_the_weighted_sum() -> None:
    reward = SwarmReward(parallel=0.2, finish=0.1, anneal_iterations=10, max_parallel=4)
    total, parts = reward(0, episode(parallelism=2, assigned=3, finished=2, reward=0.8))
    assert total == pytest.approx(0.2 * 0.5 + 0.1 * 2 / 3 + 0.8)
    assert parts["reward/parallel"] == 0.5 and parts["reward/finish"] == pytest.approx(2 / 3)
    assert parts["reward/perf"] == 0.8 and parts["swarm/critical_steps"] == 5.0


def test_the_auxiliary_rewards_fall_to_exactly_nothing() -> None:
    reward = SwarmReward(parallel=0.2, finish=0.1, anneal_iterations=10)
    scales = [reward.scale(t) for t in range(14)]
    assert scales[0] == 1.0 and scales[5] == pytest.approx(0.5)
    assert all(later < earlier for earlier, later in zip(scales[:10], scales[1:11], strict=True))
    assert scales[10:] == [0.0] * 4
    assert reward(10, episode(4, 4, 4, 0.25))[0] == 0.25


def test_the_weights_fall_until_a_share_of_the_run_or_never() -> None:
    assert SwarmReward.until(0.75, 6, parallel=0.2, finish=0.1) == SwarmReward(0.2, 0.1, anneal_iterations=4)
    constant = SwarmReward.until(math.inf, 6, parallel=0.2, finish=0.0)
    assert [constant.scale(t) for t in (0, 5, 500)] == [1.0, 1.0, 1.0]
    assert constant(5, episode(4, 4, 0, 0.25))[0] == pytest.approx(0.45)


def test_serial_and_empty_swarms_earn_no_auxiliary_reward() -> None:
    assert parallel_reward(0, 4) == parallel_reward(1, 4) == 0.0
    assert parallel_reward(9, 4) == 1.0
    assert finish_reward(0, 0) == 0.0


def test_critical_steps_count_the_slowest_sub_agent_of_each_turn() -> None:
    steps = CriticalSteps(budget=10)
    steps.spend(1)
    steps.spend(1, [2, 4, 3])
    steps.spend(1)
    assert (steps.spent, steps.remaining) == (7, 3)
    with pytest.raises(ValueError, match="4 steps do not fit into the 3"):
        steps.spend(1, [3])
    assert steps.spent == 7


def test_the_figures_of_tasks_that_tell_their_parts_are_those_of_their_number() -> None:
    reward, played = SwarmReward(0, 0, anneal_iterations=0), episode(parallelism=2, assigned=2, finished=2, reward=0.5)
    assert not any("/n" in name for name in reward(0, played)[1])
    _, parts = reward(0, replace(played, metrics=played.metrics | {"parts": 8.0}))
    assert {name: value for name, value in parts.items() if "/n" in name} == {
        "swarm/f1/n8": 0.5, "swarm/critical_steps/n8": 5.0, "swarm/delegation/n8": 1.0,
    }  # fmt: skip
