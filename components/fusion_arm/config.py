"""Parameters of one arm of the fusion ablation."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from components.runtime.config import HIGHEST_RATE, EpisodesConfig, Preset


class Config(EpisodesConfig):
    looped: ClassVar[tuple[str, ...]] = ("arm", "seed")

    arm: str = Field("early", pattern="^(early|mid|late)$", description="when vision begins (source: K2.5 Table 1)")
    seed: int = Field(0, ge=0, description="seed of the initial weights and of the data order (source: ours)")
    preset: Preset = Field("tiny", description="the model's shape: a file in model/presets")
    steps: int = Field(900, ge=1, description="optimizer steps, the same for every arm (source: ours)")
    learning_rate: float = Field(6e-3, gt=0, le=HIGHEST_RATE, description="peak learning rate (source: ours)")
    final_ratio: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the peak rate that is left at the end; high, because the late arm has its images then "
        "(source: ours)",
    )
    tokens_per_row: int = Field(256, ge=64, description="sequence length in tokens (source: ours)")
    rows: int = Field(8, ge=1, description="sequences per step (source: ours)")
    products: str = Field(
        "bfloat16",
        pattern="^(float32|bfloat16)$",
        description="precision of matrix products; weights are float32 (ours)",
    )
    checkpoint_every: int = Field(300, ge=0, description="steps between saved states (source: ours)")
    probe_every: int = Field(
        30, ge=10, multiple_of=10, description="steps between looks at the held-out losses (source: ours)"
    )
    probe_samples: int = Field(12, ge=1, description="held-out samples of each family in such a look (source: ours)")
    samples: int = Field(128, ge=2, description="held-out tasks per suite at the end (source: ours)")
    max_batch: int = Field(128, ge=1, description="completions generated at once (source: ours)")
