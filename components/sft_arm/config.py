"""Parameters of one arm of the SFT ablation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from pydantic import Field

from components.ablation.sft.arms import cells
from components.runtime.config import HIGHEST_RATE, EpisodesConfig, MixtureName, ProductsConfig


class Config(ProductsConfig, EpisodesConfig):
    looped: ClassVar[tuple[str, ...]] = ("arm", "seed")

    @classmethod
    def cells(cls, seeds: Iterable[int]) -> list[str]:
        return cells(seeds)

    arm: str = Field(
        "text",
        pattern="^(before|text|narrow)$",
        description="before, the checkpoint as it came; text, text-only trajectories; or narrow, half of the image "
        "programs made by hand and with their picture (source: K2.5 section 2.2)",
    )
    seed: int = Field(0, ge=0, description="seed of the data order (source: ours)")
    mixture: MixtureName = Field(
        "broad",
        description="trajectories to read, by name, and their shares of the tokens; it must be one whose "
        "prepare_data.mixture makes narrow_program_image (source: ours)",
    )
    steps: int = Field(300, ge=1, description="optimizer steps, the same for every arm (source: ours)")
    learning_rate: float = Field(1e-3, gt=0, le=HIGHEST_RATE, description="peak learning rate (source: ours)")
    tokens_per_row: int = Field(512, ge=64, description="sequence length in tokens (source: ours)")
    rows: int = Field(8, ge=1, description="sequences per optimizer step (source: ours)")
    checkpoint_every: int = Field(
        100, ge=0, description="optimizer steps between saved states; 0 = only at the end (source: ours)"
    )
    program_samples: int = Field(
        300,
        ge=2,
        description="held-out image programs after training; a multiple of 15 asks each kind as often (source: ours)",
    )
    samples: int = Field(600, ge=2, description="held-out tasks of each other suite after training (source: ours)")
    max_batch: int = Field(128, ge=1, description="completions generated at the same time (source: ours)")
