"""The PARL reward: r = lambda1 * r_parallel + lambda2 * r_finish + r_perf, both lambdas -> 0 (source: K2.5 paper).

The closed forms of the two auxiliary rewards and the schedule are undisclosed; these are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.rl.environment import Episode


@dataclass(frozen=True)
class SwarmReward:
    """Callable as ``model.rl.trainer.Reward``.

    Attributes:
        parallel, finish: lambda1 and lambda2 of iteration 0.
        anneal_iterations: both fall linearly and are exactly 0 from this iteration on.
        most: n_max, the number of concurrent assignments that earns the whole r_parallel.
    """

    parallel: float
    finish: float
    anneal_iterations: int
    most: int = 4

    def scale(self, iteration: int) -> float:
        """1 at iteration 0, 0 from ``anneal_iterations`` on."""
        return max(0.0, 1.0 - iteration / self.anneal_iterations) if self.anneal_iterations else 0.0

    def __call__(self, iteration: int, episode: Episode) -> tuple[float, dict[str, float]]:
        figures = episode.metrics
        r_parallel = parallel_reward(figures["parallelism"], self.most)
        r_finish = finish_reward(figures["subtasks_finished"], figures["subtasks_assigned"])
        scale = self.scale(iteration)
        total = scale * (self.parallel * r_parallel + self.finish * r_finish) + episode.reward
        parts = {"reward/parallel": r_parallel, "reward/finish": r_finish, "reward/perf": episode.reward}
        swarm = {
            "swarm/parallelism": figures["parallelism"],
            "swarm/critical_steps": figures["critical_steps"],
            "swarm/subtasks": figures["subtasks_assigned"],
            "swarm/auxiliary_scale": scale,
        }
        return total, parts | swarm


def parallel_reward(concurrent: float, most: int) -> float:
    """min(n, n_max) / n_max of the largest concurrent group; one assignment alone is serial work and earns 0."""
    return min(concurrent, most) / most if concurrent > 1 else 0.0


def finish_reward(finished: float, assigned: float) -> float:
    """The completed-subtask rate; 0 without subtasks."""
    return finished / assigned if assigned else 0.0
