"""Parameters of PARL."""

from __future__ import annotations

from pydantic import Field

from components.runtime.config import HIGHEST_RATE, RLConfig, SwarmConfig


class Config(SwarmConfig, RLConfig):
    iterations: int = Field(6, ge=1, description="rounds of rollout and training (source: ours)")
    prompts_per_iteration: int = Field(5, ge=1, description="prompts per round (source: ours)")
    samples_per_prompt: int = Field(6, ge=2, description="K, episodes per prompt (source: ours)")
    learning_rate: float = Field(2e-4, gt=0, le=HIGHEST_RATE, description="learning rate, constant (source: ours)")
    critical_steps: int = Field(5, ge=2, description="largest number of critical steps in an episode (source: ours)")
    auxiliary: float = Field(
        0.3,
        ge=0,
        description="weight of each of the two auxiliary rewards in the first round, lambda1 = lambda2; it falls to "
        "0 (source: ours)",
    )
    ptx_weight: float = Field(
        0.5,
        ge=0,
        description="weight of the pre-training loss, added to the policy's loss; 0 = none (source: K2; value ours)",
    )
    ptx_rows: int = Field(1, ge=1, description="full rows of pre-training data per gradient step (source: ours)")
    expert_precision: str = Field(
        "full",
        pattern="^(full|int4)$",
        description="precision of the routed experts in rollouts and training: full, as they are, or int4, rounded "
        "as an INT4 export rounds them (source: K2-Thinking's post-training; default ours)",
    )
    checkpoint_every: int = Field(
        3, ge=0, description="rounds between saved states; 0 = only at the end (source: ours)"
    )
    seed: int = Field(5, ge=0, description="seed of prompts and sampling (source: ours)")
