"""Critical steps: the length of a swarm's critical path, and its budget (source: K2.5 paper, PARL)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.rollout.protocol import Completion, Request, RolloutEngine


@dataclass
class CriticalSteps:
    """CriticalSteps = sum over turns t of (S_main,t + max_i S_sub,i,t), at most ``budget``.

    A turn of the orchestrator costs S_main = 1, or n if it makes n tool calls itself, because these run one after the
    other (ours). A group of assignments costs as much as its slowest sub-agent. So parallel work is cheap, and creating
    idle or unbalanced sub-agents gains nothing. Training and evaluation have the same budget.

    Attributes:
        budget: steps that an episode may take.
        spent: steps that it has taken.
    """

    budget: int
    spent: int = 0

    @property
    def remaining(self) -> int:
        """Steps that are left of the budget."""
        return self.budget - self.spent

    def spend(self, main: int, sub_agents: Sequence[int] = ()) -> None:
        """Count one turn.

        Args:
            main: steps of the orchestrator.
            sub_agents: steps of each sub-agent that ran in this turn.

        Raises:
            ValueError: the turn exceeds the budget; callers check ``remaining`` first.
        """
        steps = main + max(sub_agents, default=0)
        if steps > self.remaining:
            raise ValueError(f"{steps} steps do not fit into the {self.remaining} that remain")
        self.spent += steps


@dataclass
class CountedEngine:
    """Passes requests on and counts them: the steps of one sub-agent, also of one that breaks half-way.

    Attributes:
        steps: completions that were asked for.
    """

    engine: RolloutEngine
    steps: int = 0

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.steps += len(requests)
        return await self.engine.generate(requests)

    async def update_weights(self, checkpoint: Path) -> None:
        await self.engine.update_weights(checkpoint)
