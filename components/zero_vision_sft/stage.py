"""Zero-vision SFT: text-only trajectories that stand in for visual tool use (source: K2.5 section 2.2).

No image of ours is seen here. Visual operations are written as IPython programs over arrays; what that wakes on real
images is measured before joint RL trains on any. The user's own conversations may have images (ours).
"""

from __future__ import annotations

import logging

from components.runtime.checkpoints.manifest import Manifest
from components.runtime.step import StepContext
from components.zero_vision_sft.config import Config
from model.checkpoint.folder import load_parent
from model.data.order.mixtures import mixtures
from model.data.order.shares import parse_shares, with_shares
from model.train.fine_tuning import FineTuning, fine_tune

log = logging.getLogger(__name__)


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    # 1. Data: conversations with tools, and the user's own; the loss covers the assistant's turns only.
    data = context.data(inputs["data"])
    shares = parse_shares(config.sources)
    too_long = data.require_own(shares, config.tokens_per_row)
    for line in too_long if context.ranks.first else ():
        log.warning("%s", line)
    mixture = with_shares(mixtures(config.mixture).trajectories, shares)

    # 2. Model. Without images of the user's, the vision tower and projector get no gradient.
    model = load_parent(context.fetch(inputs["parent"]), data.tokenizer, context.ranks.expert_share)

    # 3. Train.
    tuning = FineTuning(
        config.steps, config.learning_rate, config.tokens_per_row, config.rows, config.seed, config.products,
        config.expert_precision, config.micro_batch_tokens, config.checkpoint_every,
    )  # fmt: skip
    fine_tune(model, data, mixture, tuning, context, context.ranks)
    return context.checkpoints.newest
