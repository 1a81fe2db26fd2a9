"""Parameters of one arm of the swarm ablation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from components.ablation.swarm.arms import cells
from components.runtime.config import HIGHEST_RATE, EpisodesConfig, PTXConfig, SwarmFamilies
from model.swarm.families import SWARM_FAMILIES


def _sizes(text: str) -> str:
    parts = text.split(",")
    if not all(part.isdecimal() and 2 <= int(part) <= 64 for part in parts) or len(set(parts)) < len(parts):
        raise ValueError("write different numbers of parts from 2 to 64, with commas and no blanks between")
    return text


def _of_world(text: str) -> str:
    known = [name for name in SWARM_FAMILIES if name.startswith("world_") and name != "world_easy"]
    for name in text.split(","):
        if name not in known:
            raise ValueError(f"{name!r} is no family of the offline world with parts; write some of {','.join(known)}")
    return text


class Config(PTXConfig, EpisodesConfig):
    looped: ClassVar[tuple[str, ...]] = ("arm", "seed")

    @classmethod
    def cells(cls, seeds: Iterable[int]) -> list[str]:
        return cells(seeds)

    arm: str = Field(
        "trained",
        pattern="^(trained|no_parallel|no_finish|constant|forced)$",
        description="trained, PARL as a whole; no_parallel or no_finish, without one of its auxiliary rewards; "
        "constant, with rewards that do not fall; or forced, an orchestrator that must delegate (source: ours)",
    )
    seed: int = Field(0, ge=0, description="seed of prompts and sampling (source: ours)")
    families: SwarmFamilies = Field(
        "world_wide,world_deep,world_document,world_bulk,world_easy",
        description="families of PARL's prompts, in turn, with commas and no blanks between (source: ours)",
    )
    iterations: int = Field(40, ge=1, description="rounds of rollout and training (source: ours)")
    prompts_per_iteration: int = Field(5, ge=1, description="prompts per round (source: ours)")
    samples_per_prompt: int = Field(6, ge=2, description="K, episodes per prompt (source: ours)")
    learning_rate: float = Field(2e-4, gt=0, le=HIGHEST_RATE, description="learning rate, constant (source: ours)")
    critical_steps: int = Field(
        24, ge=2, description="largest number of critical steps in an episode of PARL (source: ours)"
    )
    sub_agent_steps: int = Field(10, ge=1, description="completions of one sub-agent (source: ours)")
    max_new_tokens: int = Field(
        512, ge=1, description="tokens of one completion, of the orchestrator or a sub-agent (source: ours)"
    )
    window: int = Field(
        2048,
        ge=0,
        description="tokens of the leading agent's conversation, which has no room for a large task; 0 = the model's "
        "whole context (source: ours)",
    )
    sub_agent_window: int = Field(
        1024, ge=0, description="tokens of a sub-agent's conversation; 0 = as many as the orchestrator's (source: ours)"
    )
    parallel_weight: float = Field(
        0.3, ge=0, description="weight of the reward for parallel work in the first round, lambda1 (source: ours)"
    )
    finish_weight: float = Field(
        0.3, ge=0, description="weight of the reward for finished subtasks in the first round, lambda2 (source: ours)"
    )
    annealed_until: float = Field(
        0.75, ge=0, le=1, description="share of the rounds after which both weights are 0 (source: ours)"
    )
    checkpoint_every: int = Field(
        10, ge=0, description="rounds between saved states; 0 = only at the end (source: ours)"
    )
    measured_families: Annotated[str, AfterValidator(_of_world)] = Field(
        "world_wide",
        description="families of the held-out tasks, with commas and no blanks between; easy tasks are added (source: "
        "ours)",
    )
    sizes: Annotated[str, AfterValidator(_sizes)] = Field(
        "2,4,8,16,32",
        description="numbers of parts N of the held-out tasks, with commas and no blanks between (source: ours)",
    )
    tasks: int = Field(6, ge=1, description="held-out tasks of each family and N (source: ours)")
    at_once: int = Field(
        8,
        ge=1,
        description="held-out tasks played at once; they wait for each other, so seconds are measured apart (source: "
        "ours)",
    )
    timed_tasks: int = Field(
        2,
        ge=1,
        description="held-out tasks of each family and N that the swarm and the best single agent do again, one at a "
        "time, to measure their seconds (source: ours)",
    )
    measured_steps: int = Field(
        100, ge=2, description="largest number of critical steps of a held-out task, in all ways (source: ours)"
    )
    latency: float = Field(
        0.05,
        ge=0,
        le=60,
        description="seconds that every search, page and download takes when held-out tasks are measured (source: "
        "ours)",
    )
