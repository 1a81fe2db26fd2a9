"""A policy is trained on the outcomes of tasks, for ``visual_rl``, ``joint_rl`` and ablations (source: K2.5, RL)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from model.data.batches.folder import DataFolder
from model.data.samples.sample import Sample
from model.network.multimodal import KimiK25
from model.network.served import as_served
from model.parallel.ranks import Ranks
from model.rl.environment import Episode, Scoring, judged, run_episode
from model.rl.ptx import ptx
from model.rl.successes import Successes
from model.rl.tasks.mixture import TaskMixture
from model.rl.toggle import Toggle
from model.rl.tools.toolset import Toolset
from model.rl.trainer import Prompts, RLSettings, RLTrainer, Watch
from model.rollout.protocol import RolloutEngine
from model.train.protocol import StepServices


class Acting(Protocol):
    """An engine that speaks for the policy, and how it gets new weights."""

    @property
    def engine(self) -> RolloutEngine: ...
    async def publish(self, model: KimiK25) -> None: ...


Limits = Callable[[Sample], tuple[int, int]]
"""A task -> completions of its episode, and tokens of one completion, at most."""


@dataclass(frozen=True)
class OutcomeTask:
    """What is practised.

    Attributes:
        prompts: of the run.
        limits: of the episodes.
        score: gives an episode its reward.
        toggle: None trains without length budgets.
        ptx_weight, ptx_rows: as ``model.rl.ptx.ptx``.
    """

    prompts: Prompts
    limits: Limits
    score: Scoring = judged
    toggle: Toggle | None = None
    ptx_weight: float = 0.0
    ptx_rows: int = 1


def train_policy(
    model: KimiK25, data: DataFolder, task: OutcomeTask, acting: Acting, toolset: Toolset, settings: RLSettings,
    services: StepServices, *, tasks: TaskMixture | None = None, watch: Watch | None = None,
    successes: Successes | None = None, ranks: Ranks | None = None,
) -> None:  # fmt: skip
    """Train ``model`` in place, from the newest checkpoint of this step if there is one.

    Args:
        acting: samples from ``model``.
        toolset: makes the tools that the policy may call.
        tasks, watch, successes, ranks: as for ``RLTrainer``.

    Raises:
        MoonflowError: as ``RLTrainer``.
    """
    context = model.config.text_config.max_position_embeddings

    async def rollout(sample: Sample, seed: int, _: int) -> Episode:
        turns, tokens = task.limits(sample)
        return await run_episode(
            acting.engine, data.tokenizer, sample, data.image_config, toolset,
            max_turns=turns, max_new_tokens=tokens, max_tokens=context, temperature=1.0, seed=seed, score=task.score,
        )  # fmt: skip

    async def publish(policy: KimiK25) -> None:
        await acting.publish(as_served(policy, settings.expert_precision))

    pretraining = ptx(data, weight=task.ptx_weight, rows=task.ptx_rows, tokens=context, seed=settings.seed)
    RLTrainer(
        model, task.prompts, rollout, publish, settings,
        pad_id=data.tokenizer.pad_id, tokenizer_folder=data.path, services=services, toggle=task.toggle,
        ptx=pretraining, tasks=tasks, watch=watch, successes=successes, ranks=ranks,
    ).train()  # fmt: skip
