"""Parameters of zero-vision SFT."""

from __future__ import annotations

from pydantic import Field

from components.runtime.config import HIGHEST_RATE, TrainingConfig


class Config(TrainingConfig):
    steps: int = Field(400, ge=1, description="optimizer steps (source: ours)")
    learning_rate: float = Field(1e-3, gt=0, le=HIGHEST_RATE, description="peak learning rate (source: ours)")
    tokens_per_row: int = Field(512, ge=64, description="sequence length in tokens (source: ours)")
    rows: int = Field(2, ge=1, description="sequences per step (source: ours)")
    products: str = Field(
        "bfloat16",
        pattern="^(float32|bfloat16)$",
        description="precision of matrix products; weights are float32 (ours)",
    )
    expert_precision: str = Field(
        "full",
        pattern="^(full|int4)$",
        description="routed experts in the forward: as they are (full) or rounded as an INT4 export rounds them (int4) "
        "(source: K2-Thinking's post-training; default ours)",
    )
    checkpoint_every: int = Field(
        0, ge=0, description="steps between saved states; 0 saves at the end only (source: ours)"
    )
    seed: int = Field(3, ge=0, description="seed of the data order (source: ours)")
