"""The length of a swarm's critical path, and the budget on it (source: K2.5 paper, PARL)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class CriticalSteps:
    """CriticalSteps = sum over t of (S_main,t + max_i S_sub,i,t), never above ``budget``.

    A turn of the orchestrator costs S_main = 1; one with n direct searches costs n, for they run one after the other
    (ours). A group of assignments costs what its slowest sub-agent took, so parallel work is cheap and idle or
    unbalanced spawning buys nothing. The same budget holds in training and evaluation.
    """

    budget: int
    spent: int = 0

    @property
    def remaining(self) -> int:
        return self.budget - self.spent

    def spend(self, main: int, sub_agents: Sequence[int] = ()) -> None:
        """Count one turn: its own steps and those of each sub-agent that ran in it.

        Raises:
            ValueError: the turn does not fit; callers bound it by ``remaining`` first.
        """
        steps = main + max(sub_agents, default=0)
        if steps > self.remaining:
            raise ValueError(f"{steps} steps do not fit into the {self.remaining} that remain")
        self.spent += steps
