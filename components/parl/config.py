"""Parameters of PARL."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from components.runtime.config import HIGHEST_RATE, NO_EFFECT, RLConfig, SwarmConfig, SwarmFamilies


class Config(SwarmConfig, RLConfig):
    iterations: int = Field(6, ge=1, description="rounds of rollout and training (source: ours)")
    prompts_per_iteration: int = Field(5, ge=1, description="prompts per round (source: ours)")
    samples_per_prompt: int = Field(6, ge=2, description="K, episodes per prompt (source: ours)")
    learning_rate: float = Field(2e-4, gt=0, le=HIGHEST_RATE, description="learning rate, constant (source: ours)")
    critical_steps: int = Field(5, ge=2, description="largest number of critical steps in an episode (source: ours)")
    families: SwarmFamilies = Field(
        "wide_search",
        description="families of the prompts, in turn, with commas and no blanks between: wide_search, and those of "
        "the offline world, which the data must have: world_wide, world_deep, world_document, world_bulk and "
        "world_easy (source: ours)",
    )
    sub_agent_steps: int = Field(3, ge=1, description="completions of one sub-agent (source: ours)")
    max_new_tokens: int = Field(
        160, ge=1, description="tokens of one completion, of the orchestrator or a sub-agent (source: ours)"
    )
    window: int = Field(
        0, ge=0, description="tokens of the orchestrator's conversation; 0 = the model's whole context (source: ours)"
    )
    sub_agent_window: int = Field(
        0, ge=0, description="tokens of a sub-agent's conversation; 0 = as many as the orchestrator's (source: ours)"
    )
    completions_at_once: int = Field(
        0,
        ge=0,
        json_schema_extra=NO_EFFECT,
        description="completions of the orchestrator and of sub-agents together that each process has in flight at "
        "once, 2 or more; a third of them is the orchestrator's at first, and after each round up to a tenth moves to "
        "the one whose requests wait longer; 0 = each has as many as its engine takes, and nothing moves (source: "
        "K2.5, ratio of instances adjusted dynamically; rule and value ours)",
    )
    larger_sub_agents: str = Field(
        "",
        description="address of the manifest of a second checkpoint, whose sub-agents take the place of the first "
        "ones during training; this step itself speaks for them; empty = none (source: K2.5, smaller sub-agents "
        "first and larger ones later)",
    )
    larger_from: float = Field(
        0.33, ge=0, le=1, description="share of the rounds after which the first larger sub-agents speak (source: ours)"
    )
    larger_until: float = Field(
        0.67, ge=0, le=1, description="share of the rounds after which only larger sub-agents speak (source: ours)"
    )
    parallel_weight: float = Field(
        0.3,
        ge=0,
        description="weight of the reward for parallel work in the first round, lambda1; it falls to 0 (source: ours)",
    )
    finish_weight: float = Field(
        0.3,
        ge=0,
        description="weight of the reward for finished subtasks in the first round, lambda2; it falls to 0 (source: "
        "ours)",
    )
    annealed_until: float = Field(
        0.75,
        ge=0,
        description="share of the rounds after which both weights are 0; above 1, they have not fallen to 0 at the end "
        "(source: ours)",
    )
    checkpoint_every: int = Field(
        3, ge=0, description="rounds between saved states; 0 = only at the end (source: ours)"
    )
    seed: int = Field(5, ge=0, description="seed of prompts and sampling (source: ours)")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.completions_at_once == 1:
            raise ValueError(
                "completions_at_once is 1: give 0, or 2 or more, as orchestrator and sub-agents share them"
            )
        if self.larger_from > self.larger_until:
            raise ValueError("larger_from is after larger_until: give shares of the rounds in their order")
        return self
