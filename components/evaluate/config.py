"""Parameters of the evaluate step."""

from __future__ import annotations

from pydantic import Field

from components.runtime.config import StepConfig


class Config(StepConfig):
    samples: int = Field(
        64, ge=2, description="held-out tasks per suite for the untrained and the final model (source: ours)"
    )
    samples_intermediate: int = Field(
        24, ge=2, description="held-out tasks per suite for the checkpoints between (source: ours)"
    )
    temperature: float = Field(
        0.0, ge=0, description="sampling temperature; 0 is greedy (source: ours; K2.5 evaluates at 1.0)"
    )
    max_batch: int = Field(128, ge=1, description="completions generated at once (source: ours)")
    floors: str = Field(
        "digit_string=0.5, digit_count=0.4, array_tool=0.4",
        description="scores the final model must reach: suite=value or ability/modality=value, ... (source: ours)",
    )
    sigmas: float = Field(
        2.0, ge=0, description="standard errors by which a suite may lie below the untrained model (source: ours)"
    )
    seed: int = Field(0, ge=0, description="seed of the untrained weights and of sampling (source: ours)")
