"""Parameters of one arm of the Toggle ablation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Self

from pydantic import Field, model_validator

from components.ablation.toggle.arms import LARGER, cells
from components.runtime.config import HIGHEST_RATE, EpisodesConfig, ExpertPrecisionConfig


class Config(ExpertPrecisionConfig, EpisodesConfig):
    looped: ClassVar[tuple[str, ...]] = ("arm", "seed")

    @classmethod
    def cells(cls, seeds: Iterable[int]) -> list[str]:
        return cells(seeds)

    arm: str = Field(
        "toggle",
        pattern="^(before|free|toggle|budget)$",
        description="before, the checkpoint as it came; free, RL without budgets; toggle; or budget, RL with the same "
        "budgets in every round (source: K2.5 paper, Toggle)",
    )
    seed: int = Field(0, ge=0, description="seed of prompts and sampling in training (source: ours)")
    iterations: int = Field(40, ge=1, description="rounds of rollout and training (source: ours)")
    prompts_per_iteration: int = Field(16, ge=1, description="prompts per round (source: ours)")
    samples_per_prompt: int = Field(8, ge=2, description="K, episodes per prompt (source: ours)")
    prompts: int = Field(
        160,
        ge=1,
        description="different prompts of training, in turn; a prompt's budget is measured once (source: ours)",
    )
    learning_rate: float = Field(2e-4, gt=0, le=HIGHEST_RATE, description="learning rate, constant (source: ours)")
    accuracy: float = Field(
        0.875,
        ge=0,
        le=1,
        description="lambda, the mean reward of a group from which on its budget applies (source: ours; not in the "
        "paper)",
    )
    every: int = Field(2, ge=1, description="m, rounds of a phase of Toggle (source: ours; not in the paper)")
    percentile: float = Field(
        50.0,
        ge=0,
        le=100,
        description="rho, the percentile of the lengths of a prompt's correct answers that is its budget (source: "
        "ours; not in the paper)",
    )
    budget: int = Field(
        50,
        ge=1,
        description="tokens of the smaller budget that answers are measured with; the longest answer, in training too, "
        f"is {LARGER} times as long (source: ours)",
    )
    checkpoint_every: int = Field(
        10, ge=0, description="rounds between saved states; 0 = only at the end (source: ours)"
    )
    samples: int = Field(600, ge=2, description="held-out tasks of each family after training (source: ours)")
    max_batch: int = Field(128, ge=1, description="completions generated at the same time (source: ours)")

    @model_validator(mode="after")
    def _prompts_meet_both_phases(self) -> Self:
        """Prompts come back every ``prompts / prompts_per_iteration`` rounds."""
        rounds, rest = divmod(self.prompts, self.prompts_per_iteration)
        if not rest and rounds and rounds % (2 * self.every) == 0 and self.iterations > rounds:
            raise ValueError(
                f"prompts = {self.prompts} come back every {rounds} rounds, a whole number of Toggle's cycles of "
                f"{2 * self.every}: some would always meet a budget and others never; give another number of prompts"
            )
        return self
