"""Parameters of PARL."""

from __future__ import annotations

from pydantic import Field

from components.runtime.config import HIGHEST_RATE, EpisodesConfig, TrainingConfig


class Config(EpisodesConfig, TrainingConfig):
    iterations: int = Field(6, ge=1, description="rounds of rollout and training (source: ours)")
    prompts_per_iteration: int = Field(5, ge=1, description="prompts per round (source: ours)")
    samples_per_prompt: int = Field(6, ge=2, description="K, episodes per prompt (source: ours)")
    learning_rate: float = Field(2e-4, gt=0, le=HIGHEST_RATE, description="constant learning rate (source: ours)")
    critical_steps: int = Field(5, ge=2, description="budget of an episode in critical steps (source: ours)")
    auxiliary: float = Field(0.3, ge=0, description="lambda1 = lambda2 of the first round (source: ours)")
    ptx_weight: float = Field(
        0.5, ge=0, description="of the pre-training loss beside the policy's; 0 = none (source: K2; value ours)"
    )
    ptx_rows: int = Field(1, ge=1, description="full rows of pre-training data per gradient step (source: ours)")
    expert_precision: str = Field(
        "full",
        pattern="^(full|int4)$",
        description="routed experts in rollouts and training: as they are (full) or rounded as an INT4 export rounds "
        "them (int4) (source: K2-Thinking's post-training; default ours)",
    )
    checkpoint_every: int = Field(3, ge=0, description="rounds between saved states; 0: only the end (source: ours)")
    seed: int = Field(5, ge=0, description="seed of prompts and sampling (source: ours)")
