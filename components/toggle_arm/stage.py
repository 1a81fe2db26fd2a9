"""One arm of the Toggle ablation: what do length budgets do to RL? (source: K2.5 paper, Toggle)

All arms start from the same checkpoint and see the same prompts, again and again: a budget is measured when its prompt
is first answered correctly, and binds from then on, in the rounds that have budgets. The arm ``before`` trains nothing
and is measured as the others are.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice
from statistics import fmean

from components.ablation.services import ArmServices, Unfinished
from components.ablation.toggle import NAME
from components.ablation.toggle.arms import ARMS, FAMILIES, LARGER, TRAINED_ON
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.step import StepContext
from components.toggle_arm.config import Config
from model.boundary.at_once import all_of
from model.boundary.errors import MoonflowError
from model.checkpoint.folder import load_parent
from model.data.batches.folder import DataFolder
from model.data.samples.sample import Sample
from model.evals.suites import readable
from model.network.multimodal import KimiK25
from model.network.served import as_served
from model.rl.environment import FAILED, Episode, derive_seed, run_episode
from model.rl.failures import FailureCount, attempt
from model.rl.prompts import PromptPool
from model.rl.toggle import ToggleConfig
from model.rl.tools.toolset import Toolset
from model.rl.trainer import RLSettings, RLTrainer
from model.rollout.embedded import EmbeddedEngine

RESULTS = "results.json"


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    # 1. Data, and the checkpoint that every arm starts from.
    arm = ARMS[config.arm]
    data = context.data(inputs["data"])
    tasks = held_out_tasks(data, config.samples)
    model = load_parent(context.fetch(inputs["parent"]), data.tokenizer)
    room = model.config.text_config.max_position_embeddings
    engine = EmbeddedEngine(as_served(model, config.expert_precision), config.max_batch)

    with Toolset(sandbox=config.sandbox) as toolset:

        async def rollout(sample: Sample, seed: int, _: int = 0) -> Episode:
            return await run_episode(
                engine, data.tokenizer, sample, data.image_config, toolset,
                max_turns=1, max_new_tokens=LARGER * config.budget, max_tokens=room, temperature=1.0, seed=seed,
            )  # fmt: skip

        async def publish(policy: KimiK25) -> None:
            engine.set_model(as_served(policy, config.expert_precision))

        # 2. Train: the prompts come again in the same order, so that budgets that were measured once bind.
        if arm.trained:
            pool = PromptPool(data.source, data.index, families=[TRAINED_ON], modalities=["text"], seed=config.seed)
            settings = RLSettings(
                config.iterations, config.prompts_per_iteration, config.samples_per_prompt, config.learning_rate,
                seed=config.seed, checkpoint_every=config.checkpoint_every, expert_precision=config.expert_precision,
                max_failed_episodes=config.max_failed_episodes,
            )  # fmt: skip
            RLTrainer(
                model, Repeated(pool, config.prompts), rollout, publish, settings,
                pad_id=data.tokenizer.pad_id, tokenizer_folder=data.path,
                services=ArmServices(context.work, Unfinished(context.checkpoints), context.metrics, context.progress),
                toggle=arm.toggle(ToggleConfig(config.accuracy, config.every, config.percentile)), ranks=context.ranks,
            ).train()  # fmt: skip

        # 3. Measure: one answer to each task, at the temperature of training.
        asyncio.run(publish(model.eval()))
        answers = {
            family: summary(asyncio.run(_episodes(rollout, samples)), config.budget, config.max_failed_episodes)
            for family, samples in tasks.items()
        }

    # 4. The figures for the tracker, and for the comparison of the arms.
    result = {"name": NAME, "arm": config.arm, "seed": config.seed, "budget": config.budget, "answers": answers}
    context.metrics.log(final_metrics(answers), config.iterations if arm.trained else 0)
    folder = context.work / "results"
    folder.mkdir()
    (folder / RESULTS).write_text(json.dumps(result, indent=1) + "\n")
    seen = context.checkpoints.newest.tokens_seen if arm.trained else 0
    return context.publish(folder, kind="evals", complete=True, tokens_seen=seen, extra={"ablation": result})


class Repeated:
    """The first ``count`` prompts of a pool, again and again."""

    def __init__(self, pool: PromptPool, count: int) -> None:
        self._pool, self._count = pool, count

    def __getitem__(self, n: int) -> Sample:
        return self._pool[n % self._count]


def held_out_tasks(data: DataFolder, count: int) -> dict[str, list[Sample]]:
    """Family -> its first held-out tasks.

    Raises:
        MoonflowError: the data has none of a family; or as ``readable``.
    """
    there = data.index["families"]
    if missing := [name for name in FAMILIES if not there.get(name, {}).get("eval")]:
        raise MoonflowError(
            f"the data has no held-out tasks of {' and '.join(missing)}, which the arms are measured on: let "
            "prepare_data make the mixture thinking"
        )
    return {name: list(islice(readable(data, name), count)) for name in FAMILIES}


async def _episodes(play: Callable[[Sample, int], Awaitable[Episode]], tasks: Sequence[Sample]) -> list[Episode]:
    """One episode of each task, all at the same time; their seeds are the same for every arm."""
    return await all_of(attempt(play(task, derive_seed(number)), task) for number, task in enumerate(tasks))


def summary(episodes: Sequence[Episode], budget: int, allowed: float) -> dict[str, float]:
    """What the episodes say: points of accuracy, counted as they are and (``at_budget``) if answers of more than
    ``budget`` tokens are wrong, and ``tokens``, the mean length of an answer; ``n`` ended and ``failed``.

    Raises:
        MoonflowError: more than the share ``allowed`` of them failed.
    """
    failed = FailureCount(allowed, len(episodes)).add(episodes)
    ended = [episode for episode in episodes if episode.finish_reason != FAILED]
    return {
        "accuracy": 100 * fmean(episode.correct for episode in ended),
        "at_budget": 100 * fmean(episode.correct and episode.policy_tokens <= budget for episode in ended),
        "tokens": fmean(episode.policy_tokens for episode in ended),
        "n": len(ended),
        "failed": failed,
    }


def final_metrics(answers: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The figures for the tracker."""
    return {f"answers/{family}/{name}": float(value) for family, row in answers.items() for name, value in row.items()}
