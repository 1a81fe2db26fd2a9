"""Rejection-sampled fine-tuning: a policy learns from what it did right (source: K2.5, between visual and joint RL).

Which episodes are successes was decided when they were sampled (``model.rl.successes``). They are trained on token by
token: the loss covers what the policy sampled, not the prompt and not what tools answered. Share and budget are ours.
"""

from __future__ import annotations

from components.rejection_sft.config import Config
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.step import StepContext
from model.checkpoint.folder import SUCCESSES, load_parent
from model.checkpoint.saving import AsyncSaver
from model.data.batches.folder import DataFolder
from model.data.order.mixtures import mixtures
from model.data.order.shares import with_shares
from model.network.multimodal import KimiK25
from model.rl.successes import Kept
from model.train.fine_tuning import FineTuning, fine_tune


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    # 1. Data: the successes as one more family. Those that are longer than a row cannot be read.
    kept = Kept.of(context.fetch(inputs["successes"]))
    data = context.data(inputs["data"]).with_family(SUCCESSES, kept.entries, kept.source)
    usable = fitting(data, config.tokens_per_row) if kept.entries else 0
    if context.checkpoints.latest() is None:
        context.metrics.log({"successes/kept": float(len(kept)), "successes/used": float(usable)}, 0)

    # 2. Model.
    model = load_parent(context.fetch(inputs["parent"]), data.tokenizer)

    # 3. Train, as zero_vision_sft does. A policy that never succeeded has nothing to teach, and joint RL can go on.
    if not usable:
        context.warn(
            f"none of {len(kept)} successes fits into a row of {config.tokens_per_row} tokens: the checkpoint is "
            "passed on as it is"
        )
        pass_on(model, data, context)
        return context.checkpoints.newest
    if usable < len(kept):
        context.warn(f"{len(kept) - usable} of {len(kept)} successes do not fit into a row, or cannot be read")
    mixture = with_shares(mixtures(config.mixture).trajectories, {SUCCESSES: config.share})
    tuning = FineTuning(
        config.steps, config.learning_rate, config.tokens_per_row, config.rows, config.seed, config.products,
        config.expert_precision, config.micro_batch_tokens, config.checkpoint_every,
    )  # fmt: skip
    fine_tune(model, data, mixture, tuning, context, context.ranks)
    return context.checkpoints.newest


def fitting(data: DataFolder, tokens_per_row: int) -> int:
    """How many successes can be read and fit into a row."""
    lengths = [data.lengths(entry)[:, 0] for entry in data.entries(SUCCESSES, "train")]
    return sum(int(((tokens > 0) & (tokens <= tokens_per_row)).sum()) for tokens in lengths)


def pass_on(model: KimiK25, data: DataFolder, context: StepContext) -> None:
    """Publish the model as it came."""
    ranks = context.ranks
    with AsyncSaver(context.checkpoints, context.work, data.path, ranks.rank, ranks.world) as saver:
        saver.save(model.config, model.state_dict(), {}, {}, index=0, tokens_seen=0, complete=True)
