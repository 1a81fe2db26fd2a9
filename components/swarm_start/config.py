"""Parameters of the cold start before PARL."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from pydantic import Field

from components.ablation.swarm.arms import starts
from components.runtime.config import HIGHEST_RATE, MixtureName, ProductsConfig, TrainingConfig


class Config(ProductsConfig, TrainingConfig):
    looped: ClassVar[tuple[str, ...]] = ("seed",)

    @classmethod
    def cells(cls, seeds: Iterable[int]) -> list[str]:
        return starts(seeds)

    seed: int = Field(0, ge=0, description="seed of the data order (source: ours)")
    mixture: MixtureName = Field(
        "swarm",
        description="trajectories to read, by name, and their shares of the tokens; the same as prepare_data.mixture "
        "(source: ours)",
    )
    steps: int = Field(300, ge=1, description="optimizer steps (source: ours)")
    learning_rate: float = Field(1e-3, gt=0, le=HIGHEST_RATE, description="peak learning rate (source: ours)")
    tokens_per_row: int = Field(
        2048,
        ge=64,
        description="sequence length in tokens; longer trajectories are left out; with fewer than 2048, more of those "
        "of one agent than of a swarm (source: ours)",
    )
    rows: int = Field(2, ge=1, description="sequences per optimizer step (source: ours)")
    checkpoint_every: int = Field(
        100, ge=0, description="optimizer steps between saved states; 0 = only at the end (source: ours)"
    )
