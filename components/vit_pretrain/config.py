"""Parameters of ViT pre-training."""

from __future__ import annotations

from pydantic import Field

from components.runtime.config import HIGHEST_RATE, MixtureConfig, PresetConfig


class Config(PresetConfig, MixtureConfig):
    steps: int = Field(
        120,
        ge=1,
        description="optimizer steps that train the vision tower, the projector and the captioning decoder (source: "
        "ours)",
    )
    projector_steps: int = Field(
        10, ge=1, description="optimizer steps that train only the projector (source: K2.5 section 4, 'very short')"
    )
    text_ratio: float = Field(
        0.65, ge=0, lt=1, description="share of text tokens, which train the captioning decoder (source: ours)"
    )
    learning_rate: float = Field(6e-3, gt=0, le=HIGHEST_RATE, description="peak learning rate (source: ours)")
    tokens_per_row: int = Field(256, ge=64, description="sequence length in tokens (source: K2.5 Table 3 has 4096)")
    rows: int = Field(16, ge=1, description="sequences per optimizer step (source: ours)")
    checkpoint_every: int = Field(
        100, ge=0, description="optimizer steps between saved states; 0 = only at the end (source: ours)"
    )
    seed: int = Field(0, ge=0, description="seed of the initial weights and of the data order (source: ours)")
