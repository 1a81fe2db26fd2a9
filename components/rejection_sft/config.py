"""Parameters of rejection-sampled fine-tuning."""

from __future__ import annotations

from pydantic import Field

from components.runtime.config import HIGHEST_RATE, FineTuningConfig


class Config(FineTuningConfig):
    steps: int = Field(40, ge=1, description="optimizer steps (source: ours)")
    learning_rate: float = Field(3e-4, gt=0, le=HIGHEST_RATE, description="peak learning rate (source: ours)")
    share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of the tokens that the successes have; the rest are the trajectories of the mixture "
        "(source: ours)",
    )
    seed: int = Field(6, ge=0, description="seed of the data order (source: ours)")
