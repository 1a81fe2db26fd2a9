"""Parameters of mid-training."""

from __future__ import annotations

from pydantic import Field

from components.runtime.config import TrainingConfig


class Config(TrainingConfig):
    steps: int = Field(220, ge=1, description="optimizer steps (source: ours)")
    context_factor: float = Field(
        2.0, gt=1, description="YaRN factor: how much longer rows get (source: K2.5 has 64, from 4096 to 262144)"
    )
    vision_ratio: float = Field(0.4, ge=0, le=1, description="share of vision tokens (source: ours)")
    learning_rate: float = Field(4e-3, gt=0, description="peak learning rate (source: ours)")
    tokens_per_row: int = Field(
        512,
        ge=64,
        description="sequence length in tokens after the extension (source: K2.5 Table 3 has 32768 to 262144)",
    )
    rows: int = Field(2, ge=1, description="sequences per step (source: ours)")
    products: str = Field(
        "bfloat16",
        pattern="^(float32|bfloat16)$",
        description="precision of matrix products; weights are float32 (ours)",
    )
    checkpoint_every: int = Field(
        0, ge=0, description="steps between saved states; 0 saves at the end only (source: ours)"
    )
    seed: int = Field(2, ge=0, description="seed of the data order (source: ours)")
