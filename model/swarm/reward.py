"""The PARL reward: lambda1 * r_parallel + lambda2 * r_finish + r_perf, with both lambdas falling to 0.

Source: K2.5 paper. It does not disclose the schedule and the closed forms of the two auxiliary rewards; they are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from model.rl.environment import Episode
from model.rl.failures import LOST

MAX_PARALLEL = 4  # concurrent assignments that earn the full r_parallel


@dataclass(frozen=True)
class SwarmReward:
    """Callable as ``model.rl.groups.Reward``.

    Attributes:
        parallel, finish: lambda1 and lambda2 at iteration 0.
        anneal_iterations: both fall linearly and are exactly 0 from this iteration on; infinite: they never fall.
        max_parallel: n_max, the number of concurrent assignments that earns the full r_parallel.
    """

    parallel: float
    finish: float
    anneal_iterations: float
    max_parallel: int = MAX_PARALLEL

    @classmethod
    def until(cls, share: float, iterations: int, *, parallel: float, finish: float) -> SwarmReward:
        """Weights that are 0 from a share of the run's iterations on; an infinite one: they never fall."""
        last = share * iterations
        return cls(parallel, finish, int(last) if math.isfinite(last) else last)

    def scale(self, iteration: int) -> float:
        """The factor of both lambdas: 1 at iteration 0, 0 from ``anneal_iterations`` on."""
        return max(0.0, 1.0 - iteration / self.anneal_iterations) if self.anneal_iterations else 0.0

    def __call__(self, iteration: int, episode: Episode) -> tuple[float, dict[str, float]]:
        figures = episode.metrics
        r = reward_parts(figures, self.max_parallel)
        scale = self.scale(iteration)
        total = scale * (self.parallel * r["parallel"] + self.finish * r["finish"]) + episode.reward
        parts = {"reward/parallel": r["parallel"], "reward/finish": r["finish"], "reward/perf": episode.reward}
        swarm = {
            "swarm/parallelism": figures["parallelism"],
            "swarm/critical_steps": figures["critical_steps"],
            "swarm/subtasks": figures["subtasks_assigned"],
            "swarm/sub_agents_failed": figures[LOST],
            "swarm/auxiliary_scale": scale,
        }
        return total, parts | swarm | _by_parts(episode)


def _by_parts(episode: Episode) -> dict[str, float]:
    """Figures of the tasks that have as many parts as this one; {} where a task does not say how many it has."""
    figures = episode.metrics
    if "parts" not in figures:
        return {}
    found = {
        "f1": episode.reward,
        "critical_steps": figures["critical_steps"],
        "delegation": float(figures["subtasks_assigned"] > 0),
    }
    return {f"swarm/{name}/n{figures['parts']:.0f}": value for name, value in found.items()}


def reward_parts(figures: Mapping[str, float], max_parallel: int = MAX_PARALLEL) -> dict[str, float]:
    """The two auxiliary rewards, without their weights, from the metrics of an episode."""
    return {
        "parallel": parallel_reward(figures["parallelism"], max_parallel),
        "finish": finish_reward(figures["subtasks_finished"], figures["subtasks_assigned"]),
    }


def parallel_reward(concurrent: float, max_parallel: int) -> float:
    """min(n, n_max) / n_max for the largest concurrent group of n; a single assignment is serial work and earns 0."""
    return min(concurrent, max_parallel) / max_parallel if concurrent > 1 else 0.0


def finish_reward(finished: float, assigned: float) -> float:
    """The share of the assigned subtasks that were answered; 0 if there were none."""
    return finished / assigned if assigned else 0.0
