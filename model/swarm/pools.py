"""The orchestrator's and the sub-agents' completions in flight, and how their sizes follow the time in their queues.

Source: K2.5 section on Agent Swarm: the ratio of the instances that serve orchestrator and sub-agents is adjusted while
training goes on. How is not disclosed; the rule is ours.
"""

from __future__ import annotations

from model.parallel.ranks import Ranks
from model.rollout.pool import Pool

STEP = 0.1  # share of the total that moves after a round at most (ours)
SHORT_S = 0.01  # waits below it are as good as none (ours)
ORCHESTRATOR = 1 / 3  # share of the total in the first round: two sub-agents for each orchestrator (ours)


def moved(capacity: int, other: int, wait_s: float, other_wait_s: float) -> int:
    """How much of the total a pool gets from the other one; below 0, how much it gives.

    The difference of the waits, as a share of their sum, of ``STEP`` of the total, or of 1 if that is less. Neither
    pool falls below 1. The same arguments give the same result.

    Args:
        capacity, other: completions in flight at once of both pools.
        wait_s, other_wait_s: seconds that a request waited, on the average.
    """
    imbalance = (wait_s - other_wait_s) / (wait_s + other_wait_s + SHORT_S)  # from -1 to 1
    wanted = round(imbalance * max(1.0, STEP * (capacity + other)))
    return max(1 - capacity, min(other - 1, wanted))


class SwarmPools:
    """Both pools of a step. Callable as ``model.rl.trainer.Measure``.

    Args:
        total: completions in flight at once, of both together, in each process, 2 or more; 0: their engines alone limit
            them, and no size moves.
        ranks: of this process. All measure together and have the same sizes.
    """

    def __init__(self, total: int, ranks: Ranks) -> None:
        self._total, self._ranks = total, ranks
        first = max(1, round(ORCHESTRATOR * total))
        self.orchestrator = Pool(first if total else None)
        self.sub_agents = Pool(total - first if total else None)

    def __call__(self) -> dict[str, float]:
        """``queue_s/<pool>``, the mean seconds that a request of the round waited, and ``pool_size/<pool>``, the sizes
        that it was played with; then capacity moves towards the pool that waits longer."""
        pools = {"orchestrator": self.orchestrator, "sub_agents": self.sub_agents}
        told = self._ranks.gather({name: pool.waits() for name, pool in pools.items()})
        waits = {name: [wait for each in told for wait in each[name]] for name in pools}
        means = {name: sum(each) / len(each) for name, each in waits.items() if each}
        figures = {f"queue_s/{name}": mean for name, mean in means.items()}
        first, second = self.orchestrator.capacity, self.sub_agents.capacity
        if first is None or second is None:
            return figures
        figures |= {"pool_size/orchestrator": float(first), "pool_size/sub_agents": float(second)}
        more = moved(first, second, means.get("orchestrator", 0.0), means.get("sub_agents", 0.0))
        self.orchestrator.capacity, self.sub_agents.capacity = first + more, second - more
        return figures
