"""PARL: an orchestrator learns to use frozen sub-agents in parallel, for the step ``parl`` and for ablations.

Source: K2.5 section on Agent Swarm. The sub-agents' answers are observations; only the orchestrator is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from model.boundary.errors import MoonflowError
from model.data.batches.folder import DataFolder
from model.data.order.shares import Mixture
from model.data.samples.sample import Sample
from model.data.samples.shard_source import ShardSource
from model.network.multimodal import KimiK25
from model.network.served import as_served
from model.parallel.ranks import Ranks
from model.rl.environment import Episode, Scoring, judged
from model.rl.groups import Group
from model.rl.outcome_training import Acting
from model.rl.prompts import PromptPool
from model.rl.ptx import PRETRAINING, ptx
from model.rl.tasks.mixture import TaskMixture
from model.rl.tasks.task import TaskSample
from model.rl.tools.toolset import Toolset
from model.rl.trainer import Measure, RLSettings, RLTrainer
from model.rollout.protocol import RolloutEngine
from model.swarm.baselines import Mode, agent_tools
from model.swarm.orchestrator import SwarmEpisode, SwarmLimits, run_swarm_episode
from model.swarm.reward import SwarmReward
from model.train.protocol import StepServices

Speaking = Callable[[Sample, int], RolloutEngine]
"""(task, round from 0) -> the engine that speaks for its sub-agents."""


class Traces(Protocol):
    """What keeps traces of episodes; it is a `model.rl.trainer.Watch`."""

    def carried(self, t: int, episode: SwarmEpisode) -> SwarmEpisode:
        """The episode of round ``t``, from 1, as it goes on to the trainer."""
        ...

    def __call__(self, t: int, groups: Sequence[Group]) -> None: ...


class _NoTraces:
    """Drops the traces, which take memory."""

    def carried(self, t: int, episode: SwarmEpisode) -> SwarmEpisode:
        return replace(episode, trace=None)

    def __call__(self, t: int, groups: Sequence[Group]) -> None:
        """Nothing was kept."""


@dataclass(frozen=True)
class SwarmTask:
    """What is practised, and within which limits.

    Attributes:
        mode: of the episodes: "swarm", or "must_delegate", in which the orchestrator has no tools of its own.
        ptx_weight, ptx_rows, ptx_mixture: as ``model.rl.ptx.ptx``.
    """

    limits: SwarmLimits
    mode: Mode = "swarm"
    ptx_weight: float = 0.0
    ptx_rows: int = 1
    ptx_mixture: Mixture = field(default_factory=lambda: PRETRAINING)


def swarm_prompts(source: ShardSource, index: Mapping[str, Any], families: Sequence[str], seed: int) -> PromptPool:
    """The prompts of these families of a data folder, in turn. They never ask to work in parallel.

    Trajectories whose orchestrator has no tools but the swarm's are no prompts: a sub-agent has the tools of the task,
    which would be none.

    Raises:
        MoonflowError: the data lacks a family.
    """

    def usable(sample: Sample) -> bool:
        return bool(agent_tools(sample, "single"))

    return PromptPool(source, index, families=families, modalities=["text"], seed=seed, usable=usable)


def train_orchestrator(
    model: KimiK25, data: DataFolder, task: SwarmTask, prompts: PromptPool | TaskMixture, acting: Acting,
    speaking: Speaking, toolset: Toolset, reward: SwarmReward, settings: RLSettings, services: StepServices, *,
    score: Scoring = judged, traces: Traces | None = None, measure: Measure | None = None, ranks: Ranks | None = None,
) -> None:  # fmt: skip
    """Train ``model`` in place, from the newest checkpoint of this step if there is one.

    Args:
        acting: samples from ``model``.
        score: gives an episode its reward.
        measure: as for ``RLTrainer``.

    Raises:
        MoonflowError: as ``RLTrainer``.
    """
    kept = traces or _NoTraces()

    async def rollout(sample: Sample, seed: int, t: int) -> Episode:
        episode = await run_swarm_episode(
            acting.engine, speaking(sample, t), data.tokenizer, sample, data.image_config, toolset,
            limits=_limits_of(sample, task.limits), temperature=1.0, seed=seed, mode=task.mode, score=score,
        )  # fmt: skip
        return kept.carried(t + 1, episode)

    async def publish(policy: KimiK25) -> None:
        await acting.publish(as_served(policy, settings.expert_precision))

    pretraining = ptx(
        data, weight=task.ptx_weight, rows=task.ptx_rows, tokens=context_of(model), seed=settings.seed,
        mixture=task.ptx_mixture,
    )  # fmt: skip
    RLTrainer(
        model, prompts, rollout, publish, settings,
        pad_id=data.tokenizer.pad_id, tokenizer_folder=data.path, services=services, reward=reward,
        ptx=pretraining, tasks=prompts if isinstance(prompts, TaskMixture) else None, watch=kept,
        measure=measure, ranks=ranks,
    ).train()  # fmt: skip


def _limits_of(sample: Sample, limits: SwarmLimits) -> SwarmLimits:
    """The limits of a task's episode: a user's task may ask for longer completions, not for more steps."""
    if isinstance(sample, TaskSample):
        return replace(limits, max_new_tokens=max(limits.max_new_tokens, sample.max_new_tokens))
    return limits


def context_of(model: KimiK25) -> int:
    """Tokens of the longest context that the model reads."""
    return model.config.text_config.max_position_embeddings


def windows(
    step: str, model: KimiK25, sub_agents: Sequence[KimiK25], window: int, sub_agent_window: int
) -> dict[str, int]:
    """The windows of ``SwarmLimits``; 0 stands for the largest one, and for as large a one as the orchestrator's.

    Args:
        step: whose parameters they are.

    Raises:
        MoonflowError: a window is larger than its model's context.
    """
    most, most_of_subs = context_of(model), min(map(context_of, sub_agents))
    for name, given, context in (("window", window, most), ("sub_agent_window", sub_agent_window, most_of_subs)):
        if given > context:
            raise MoonflowError(f"{step}.{name} is {given}, and the model has a context of {context}: lower it")
    window = window or most
    return {"max_tokens": window, "sub_agent_tokens": sub_agent_window or min(window, most_of_subs)}
