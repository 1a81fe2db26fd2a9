"""Parameters of visual RL."""

from __future__ import annotations

from pydantic import Field

from components.outcome_rl.config import OutcomeRLConfig


class Config(OutcomeRLConfig):
    iterations: int = Field(8, ge=1, description="rounds of rollout and training (source: ours)")
    kept_successes: int = Field(
        2_000,
        ge=1,
        le=100_000,
        description="successful episodes that are kept in the checkpoint for rejection_sft, at most; a newer one takes "
        "the place of the oldest (source: ours)",
    )
    kept_per_prompt: int = Field(
        2,
        ge=1,
        description="kept episodes of the same prompt, at most; a newer one takes the place of the oldest, and equal "
        "ones are kept once (source: ours)",
    )
    kept_reward: float = Field(
        1.0, gt=0, le=1, description="reward that an episode must earn to be kept (source: ours)"
    )
    seed: int = Field(7, ge=0, description="seed of prompts and sampling (source: ours)")
