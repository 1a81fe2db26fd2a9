"""One arm of the RL ablation: a part of the way from zero-vision SFT to joint RL (source: K2.5, visual and joint RL).

Each arm trains by the same lines as the recipe's own step, and is then measured on the same held-out tasks as the
others. Its output is its checkpoint, from which other arms start; the scores stand in the manifest.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from components.ablation.rl import NAME
from components.ablation.rl.arms import ARMS, BEFORE, JOINT, RFT, SUITES, VISUAL
from components.ablation.services import ArmServices, Unfinished
from components.rl_arm.config import Config
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.sampler import EmbeddedSampler
from components.runtime.step import StepContext
from model.boundary.errors import MoonflowError
from model.checkpoint.folder import SUCCESSES, load_parent, read_state, write_checkpoint
from model.data.batches.folder import DataFolder
from model.data.order.mixtures import mixtures
from model.data.samples.sample import Sample
from model.evals.answer_room import most_turns, need_more
from model.evals.greedy import greedy_scores
from model.evals.score import Score
from model.evals.suites import SUITES as HELD_OUT
from model.evals.suites import available, readable
from model.network.multimodal import KimiK25
from model.network.served import as_served
from model.rl.lessons import Lessons, with_successes
from model.rl.outcome_training import OutcomeTask, train_policy
from model.rl.prompts import PromptPool
from model.rl.successes import Successes
from model.rl.toggle import Toggle
from model.rl.tools.toolset import Toolset
from model.rl.trainer import RLSettings
from model.swarm.families import SWARM_FAMILIES
from model.train.fine_tuning import FineTuning, fine_tune


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    # 1. Data, and the checkpoint that the arm starts from.
    data = context.data(inputs["data"])
    tasks = held_out_tasks(data, config)
    model = load_parent(context.fetch(inputs["parent"]), data.tokenizer)

    # 2. Train.
    if ARMS[config.arm].rl:
        practise(model, data, config, context)
    else:
        lessons = context.fetch(inputs["successes"]) if config.arm == RFT else None
        study(model, data, lessons, config, context)
    saved = context.checkpoints.latest()
    tokens = int(read_state(saved)["loop"]["tokens_seen"]) if saved is not None else 0

    # 3. Measure vision and text.
    scores = greedy_scores(
        model.eval(), data, tasks, sandbox=config.sandbox, max_batch=config.max_batch,
        max_failed_episodes=config.max_failed_episodes,
    )  # fmt: skip

    # 4. The checkpoint for the arms after it, with the figures for the comparison of the arms.
    result = {
        "name": NAME,
        "arm": config.arm,
        "seed": config.seed,
        "tokens": tokens,
        "visual_families": config.visual_families.split(","),
        "scores": {name: asdict(score) for name, score in scores.items()},
    }
    context.metrics.log(final_metrics(scores), trained_steps(config))
    folder = context.work / "arm"
    write_checkpoint(folder, model.config, model.state_dict(), data.path, None, "")
    if config.arm == VISUAL and saved is not None:
        shutil.copytree(saved / SUCCESSES, folder / SUCCESSES)
    return context.publish(folder, kind="checkpoint", complete=True, tokens_seen=tokens, extra={"ablation": result})


def study(model: KimiK25, data: DataFolder, successes: Path | None, config: Config, context: StepContext) -> None:
    """Fine-tune in place: the arms before and more_sft on trajectories, the arm rft on successes and trajectories.

    A policy without successes has nothing to teach: the arm rft is then left as it is, and the manifest warns of it.
    """
    mixture = mixtures(config.mixture).trajectories
    if successes is not None:
        lessons = Lessons.of(data, successes, config.tokens_per_row)
        if context.checkpoints.latest() is None:
            context.metrics.log({"successes/kept": float(lessons.kept), "successes/used": float(lessons.usable)}, 0)
        if not lessons.usable:
            context.warn("the policy has no success that fits into a row: the checkpoint is left as it is")
            return
        if lessons.problem:
            context.warn(lessons.problem)
        data, mixture = lessons.data, with_successes(mixture, config.share)
    tuning = FineTuning(
        trained_steps(config), config.start_learning_rate if config.arm == BEFORE else config.tuning_learning_rate,
        config.tokens_per_row, config.rows, config.seed, config.products, checkpoint_every=config.checkpoint_every,
    )  # fmt: skip
    fine_tune(model, data, mixture, tuning, _services(context))


def practise(model: KimiK25, data: DataFolder, config: Config, context: StepContext) -> None:
    """RL in place: on some families of images, whose successes are kept; or joint RL, as the step joint_rl does it."""
    joint = config.arm == JOINT
    if joint:
        without = (*SWARM_FAMILIES, *need_more(data.families(), config.max_new_tokens))
        pool = PromptPool(data.source, data.index, modalities=("text", "image"), seed=config.seed, without=without)
    else:
        families = config.visual_families.split(",")
        pool = PromptPool(data.source, data.index, families=families, modalities=("image",), seed=config.seed)
    task = OutcomeTask(
        pool, lambda sample: (most_turns(sample.family), config.max_new_tokens), toggle=Toggle() if joint else None,
        ptx_weight=config.ptx_weight if joint else 0.0, ptx_rows=config.ptx_rows,
    )  # fmt: skip
    settings = RLSettings(
        trained_steps(config), config.prompts_per_iteration, config.samples_per_prompt, config.learning_rate,
        seed=config.seed, checkpoint_every=config.checkpoint_every, max_failed_episodes=config.max_failed_episodes,
    )  # fmt: skip
    kept = None if joint else Successes(config.kept_successes, config.kept_per_prompt, config.kept_reward)
    acting = EmbeddedSampler(as_served(model, "full"), config.prompts_per_iteration * config.samples_per_prompt)
    with closing(acting), Toolset(sandbox=config.sandbox) as toolset:
        train_policy(model, data, task, acting, toolset, settings, _services(context), successes=kept)


def _services(context: StepContext) -> ArmServices:
    return ArmServices(context.work, Unfinished(context.checkpoints), context.metrics, context.progress)


def trained_steps(config: Config) -> int:
    """Optimizer steps of the arm's fine-tuning, or rounds of its RL."""
    if ARMS[config.arm].rl:
        return config.joint_iterations if config.arm == JOINT else config.visual_iterations
    return config.start_steps if config.arm == BEFORE else config.tuning_steps


def held_out_tasks(data: DataFolder, config: Config) -> dict[str, list[Sample]]:
    """Suite -> its first held-out tasks, for the suites of the ablation that the data has.

    Raises:
        MoonflowError: the data has none of a family that is trained on; or as ``readable``.
    """
    there = {suite.name for suite in available(data)}
    if missing := [name for name in config.visual_families.split(",") if name not in there]:
        raise MoonflowError(
            f"the data has no held-out tasks of {' and '.join(missing)}, which RL on images is measured on: let "
            "prepare_data make the mixture broad, or leave the family out of visual_families"
        )
    return {
        name: [HELD_OUT[name].task(sample) for sample in islice(readable(data, HELD_OUT[name].family), config.samples)]
        for name in SUITES
        if name in there
    }


def final_metrics(scores: Mapping[str, Score]) -> dict[str, float]:
    """The figures for the tracker, named as in other steps that have them."""
    found = {"episodes/failed": float(sum(score.failed for score in scores.values()))}
    for name, score in scores.items():
        found[f"eval/{name}/{SUITES[name].ability}/{SUITES[name].modality}"] = score.value
    return found
