"""Parameters of rejection-sampled fine-tuning."""

from __future__ import annotations

from pydantic import Field

from components.runtime.config import HIGHEST_RATE, MixtureConfig


class Config(MixtureConfig):
    steps: int = Field(60, ge=1, description="optimizer steps (source: ours)")
    learning_rate: float = Field(3e-4, gt=0, le=HIGHEST_RATE, description="peak learning rate (source: ours)")
    share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of the tokens that the successes have; the rest are the trajectories of the mixture "
        "(source: ours)",
    )
    tokens_per_row: int = Field(
        512, ge=64, description="sequence length in tokens; a longer success is left out (source: ours)"
    )
    rows: int = Field(8, ge=1, description="sequences per optimizer step (source: ours)")
    products: str = Field(
        "bfloat16",
        pattern="^(float32|bfloat16)$",
        description="precision of matrix products: float32, or bfloat16 unless the CPU has no instructions for it; "
        "weights are float32 (source: ours)",
    )
    expert_precision: str = Field(
        "full",
        pattern="^(full|int4)$",
        description="precision of the routed experts in the forward pass: full, as they are, or int4, rounded as an "
        "INT4 export rounds them (source: K2-Thinking's post-training; default ours)",
    )
    checkpoint_every: int = Field(
        0, ge=0, description="optimizer steps between saved states; 0 = only at the end (source: ours)"
    )
    seed: int = Field(6, ge=0, description="seed of the data order (source: ours)")
