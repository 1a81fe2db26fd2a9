"""Parameters of mid-training."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Self

from pydantic import Field, field_validator, model_validator

from components.runtime.config import HIGHEST_RATE, MixtureConfig


class Config(MixtureConfig):
    steps: int = Field(
        140, ge=1, description="optimizer steps, divided evenly among the context lengths (source: ours)"
    )
    context_steps: str = Field(
        "2,4",
        description="context lengths to train at in turn, as growing multiples of the pre-training context, "
        "extended by YaRN (source: K2.5 has 8,64: from 4096 over 32768 to 262144)",
    )
    vision_ratio: float = Field(0.4, ge=0, le=1, description="share of vision tokens (source: ours)")
    learning_rate: float = Field(
        4e-3,
        gt=0,
        le=HIGHEST_RATE,
        description="peak learning rate at the first context length; it falls in proportion as the context grows "
        "(source: ours)",
    )
    rows: int = Field(
        4,
        ge=1,
        description="sequences per optimizer step at the longest context; shorter contexts get as many tokens "
        "(source: ours)",
    )
    checkpoint_every: int = Field(
        0,
        ge=0,
        description="optimizer steps between saved states; 0 = only at the end of each context length (source: ours)",
    )
    seed: int = Field(2, ge=0, description="seed of the data order (source: ours)")

    @field_validator("context_steps")
    @classmethod
    def _factors(cls, text: str) -> str:
        try:
            factors = [float(part) for part in text.split(",")]
        except ValueError:
            factors = []
        if not factors or not all(earlier < later < math.inf for earlier, later in pairwise([1.0, *factors])):
            raise ValueError("growing factors above 1 with commas between them, such as 2,4")
        return text

    @model_validator(mode="after")
    def _enough_steps(self) -> Self:
        if self.steps < len(self.factors):
            raise ValueError(f"steps {self.steps}: context_steps {self.context_steps} needs one for each at least")
        return self

    @property
    def factors(self) -> list[float]:
        """How many times longer than in pre-training the context gets, one after the other."""
        return [float(part) for part in self.context_steps.split(",")]
