"""Parameters of joint text-vision pre-training."""

from __future__ import annotations

from pydantic import Field

from components.runtime.config import HIGHEST_RATE, MixtureConfig


class Config(MixtureConfig):
    steps: int = Field(1200, ge=1, description="optimizer steps (source: ours)")
    vision_ratio: float = Field(
        0.35,
        ge=0,
        le=1,
        description="share of vision tokens, constant during training (source: K2.5 Table 1; early fusion has 0.1)",
    )
    vision_start: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the optimizer steps before the first image (source: K2.5 Table 1: 0, early fusion)",
    )
    learning_rate: float = Field(6e-3, gt=0, le=HIGHEST_RATE, description="peak learning rate (source: ours)")
    tokens_per_row: int = Field(256, ge=64, description="sequence length in tokens (source: K2.5 Table 3 has 4096)")
    rows: int = Field(16, ge=1, description="sequences per optimizer step (source: ours)")
    checkpoint_every: int = Field(
        250, ge=0, description="optimizer steps between saved states; 0 = only at the end (source: ours)"
    )
    seed: int = Field(1, ge=0, description="seed of the data order (source: ours)")
