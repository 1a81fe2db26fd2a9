"""Toggle: RL under a length budget alternates with RL without one (source: K2.5 paper, Toggle)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class ToggleConfig:
    """Constants of Toggle. The paper does not disclose them; all three values are a starting guess.

    Attributes:
        accuracy: lambda; the budget applies only to groups whose mean reward reaches it.
        every: m, iterations per phase.
        percentile: rho; the budget is this percentile of the lengths of correct responses.
    """

    accuracy: float = 7 / 8  # starting guess
    every: int = 2  # starting guess
    percentile: float = 90.0  # starting guess


@dataclass
class Toggle:
    """The token budget of each prompt, measured once, in the first group with a correct response."""

    config: ToggleConfig = field(default_factory=ToggleConfig)
    budgets: dict[str, float] = field(default_factory=dict)

    def measure(self, prompt: str, lengths: Sequence[int], correct: Sequence[bool]) -> None:
        """Set the budget of ``prompt`` (``family/key``) in tokens, unless it has one or no response was correct."""
        right = [length for length, ok in zip(lengths, correct, strict=True) if ok]
        if right and prompt not in self.budgets:
            self.budgets[prompt] = float(np.percentile(right, self.config.percentile))

    def budget_phase(self, iteration: int) -> bool:
        """Whether this iteration has budgets: floor(t / m) is even."""
        return (iteration // self.config.every) % 2 == 0

    def shape(self, iteration: int, prompt: str, rewards: Sequence[float], lengths: Sequence[int]) -> list[float]:
        """The rewards of one prompt's responses: in a budget phase, 0 for responses longer than the budget.

        r * 1[mean r < lambda or |y| <= budget(x)] in budget phases, r in the others.
        """
        mean = sum(rewards) / len(rewards)
        if not self.budget_phase(iteration) or mean < self.config.accuracy or prompt not in self.budgets:
            return list(rewards)
        budget = self.budgets[prompt]
        return [r if length <= budget else 0.0 for r, length in zip(rewards, lengths, strict=True)]

    def state(self) -> dict[str, float]:
        """What `load` needs to continue: prompt -> budget."""
        return dict(self.budgets)

    def load(self, state: dict[str, float]) -> None:
        """Continue with budgets from `state`."""
        self.budgets = dict(state)
