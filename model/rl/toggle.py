"""Toggle: alternate between RL under a length budget and plain RL (source: K2.5 paper, Toggle)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class ToggleConfig:
    """The paper leaves these undisclosed; all three values are a starting guess.

    Attributes:
        accuracy: lambda; the budget bites only in groups whose mean reward reaches it.
        every: m, iterations per phase.
        percentile: rho, in percent, of the lengths of correct responses.
    """

    accuracy: float = 7 / 8  # starting guess
    every: int = 2  # starting guess
    percentile: float = 90.0  # starting guess


@dataclass
class Toggle:
    """Keeps each prompt's token budget, which is measured once: in the first group that holds a correct response."""

    config: ToggleConfig = field(default_factory=ToggleConfig)
    budgets: dict[str, float] = field(default_factory=dict)

    def measure(self, prompt: str, lengths: Sequence[int], correct: Sequence[bool]) -> None:
        """Set the budget of ``prompt`` (a sample's key) in tokens, unless it has one or nothing was correct."""
        right = [length for length, ok in zip(lengths, correct, strict=True) if ok]
        if right and prompt not in self.budgets:
            self.budgets[prompt] = float(np.percentile(right, self.config.percentile))

    def budget_phase(self, iteration: int) -> bool:
        """Whether floor(t / m) is even."""
        return (iteration // self.config.every) % 2 == 0

    def shape(self, iteration: int, prompt: str, rewards: Sequence[float], lengths: Sequence[int]) -> list[float]:
        """r * 1[mean r < lambda or |y| <= budget(x)] in budget phases, r in the others."""
        mean = sum(rewards) / len(rewards)
        if not self.budget_phase(iteration) or mean < self.config.accuracy or prompt not in self.budgets:
            return list(rewards)
        budget = self.budgets[prompt]
        return [r if length <= budget else 0.0 for r, length in zip(rewards, lengths, strict=True)]

    def state(self) -> dict[str, float]:
        return dict(self.budgets)

    def load(self, state: dict[str, float]) -> None:
        self.budgets = dict(state)
