"""Rejection-sampled fine-tuning: a policy learns from what it did right (source: K2.5, between visual and joint RL).

Which episodes are successes was decided when they were sampled (``model.rl.successes``). They are trained on token by
token: the loss covers what the policy sampled, not the prompt and not what tools answered. Share and budget are ours.
"""

from __future__ import annotations

from components.rejection_sft.config import Config
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.step import StepContext
from model.checkpoint.folder import load_parent
from model.checkpoint.saving import AsyncSaver
from model.data.batches.folder import DataFolder
from model.data.order.mixtures import mixtures
from model.network.multimodal import KimiK25
from model.parallel.reduction import weights_to_write
from model.rl.lessons import Lessons, with_successes
from model.train.fine_tuning import FineTuning, fine_tune


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    # 1. Data: the successes as one more family. Those that are longer than a row cannot be read.
    lessons = Lessons.of(context.data(inputs["data"]), context.fetch(inputs["successes"]), config.tokens_per_row)
    if context.checkpoints.latest() is None:
        context.metrics.log({"successes/kept": float(lessons.kept), "successes/used": float(lessons.usable)}, 0)

    # 2. Model.
    model = load_parent(context.fetch(inputs["parent"]), lessons.data.tokenizer, context.ranks.expert_share)

    # 3. Train, as zero_vision_sft does. A policy that never succeeded has nothing to teach, and joint RL can go on.
    if not lessons.usable:
        unread = f"none of {lessons.kept} successes fits into a row of {config.tokens_per_row} tokens"
        context.warn(f"{unread if lessons.kept else 'no success was kept'}: the checkpoint is passed on as it is")
        pass_on(model, lessons.data, context)
        return context.checkpoints.newest
    if lessons.problem:
        context.warn(lessons.problem)
    mixture = with_successes(mixtures(config.mixture).trajectories, config.share)
    tuning = FineTuning(
        config.steps, config.learning_rate, config.tokens_per_row, config.rows, config.seed, config.products,
        config.expert_precision, config.micro_batch_tokens, config.checkpoint_every,
    )  # fmt: skip
    fine_tune(model, lessons.data, mixture, tuning, context, context.ranks)
    return context.checkpoints.newest


def pass_on(model: KimiK25, data: DataFolder, context: StepContext) -> None:
    """Publish the model as it came."""
    ranks = context.ranks
    place, weights = (ranks.rank, ranks.world, ranks.expert_share), weights_to_write(model.state_dict(), ranks)
    with AsyncSaver(context.checkpoints, context.work, data.path, *place) as saver:
        saver.save(model.config, weights, {}, {}, index=0, tokens_seen=0, complete=True)
