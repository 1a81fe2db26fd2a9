"""Parameters that visual RL and joint RL share."""

from __future__ import annotations

from pydantic import Field

from components.runtime.config import HIGHEST_RATE, RLConfig


class OutcomeRLConfig(RLConfig):
    """Base of the steps that train on the outcomes of tasks (``components.outcome_rl.training``)."""

    iterations: int = Field(20, ge=1, description="rounds of rollout and training (source: ours)")
    prompts_per_iteration: int = Field(16, ge=1, description="prompts per round (source: ours)")
    samples_per_prompt: int = Field(8, ge=2, description="K, episodes per prompt (source: ours)")
    learning_rate: float = Field(2e-4, gt=0, le=HIGHEST_RATE, description="learning rate, constant (source: ours)")
    max_new_tokens: int = Field(
        48,
        ge=1,
        description="longest completion in tokens; families whose held-out suite allows longer ones are left out: "
        "image programs need 200 (source: ours)",
    )
    checkpoint_every: int = Field(
        10, ge=0, description="rounds between saved states; 0 = only at the end (source: ours)"
    )
    seed: int = Field(4, ge=0, description="seed of prompts and sampling (source: ours)")
