"""Parameters of one arm of the fusion ablation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from pydantic import Field

from components.ablation.fusion.arms import cells
from components.runtime.config import HIGHEST_RATE, EpisodesConfig, PresetConfig, ProductsConfig


class Config(PresetConfig, ProductsConfig, EpisodesConfig):
    looped: ClassVar[tuple[str, ...]] = ("arm", "seed")

    @classmethod
    def cells(cls, seeds: Iterable[int]) -> list[str]:
        return cells(seeds)

    arm: str = Field(
        "early",
        pattern="^(early|mid|late)$",
        description="when images come in: early, mid or late (source: K2.5 Table 1)",
    )
    seed: int = Field(0, ge=0, description="seed of the initial weights and of the data order (source: ours)")
    steps: int = Field(900, ge=1, description="optimizer steps, the same for every arm (source: ours)")
    learning_rate: float = Field(6e-3, gt=0, le=HIGHEST_RATE, description="peak learning rate (source: ours)")
    final_ratio: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the peak learning rate that is left at the last step; it is high because the late arm "
        "sees its images at the end (source: ours)",
    )
    tokens_per_row: int = Field(256, ge=64, description="sequence length in tokens (source: ours)")
    rows: int = Field(8, ge=1, description="sequences per optimizer step (source: ours)")
    checkpoint_every: int = Field(
        300, ge=0, description="optimizer steps between saved states; 0 = only at the end (source: ours)"
    )
    probe_every: int = Field(
        30,
        ge=10,
        multiple_of=10,
        description="optimizer steps between measurements of the held-out losses (source: ours)",
    )
    probe_samples: int = Field(12, ge=1, description="held-out samples of each family per measurement (source: ours)")
    samples: int = Field(128, ge=2, description="held-out tasks per suite after training (source: ours)")
    max_batch: int = Field(128, ge=1, description="completions generated at the same time (source: ours)")
