"""Zero-vision SFT: text-only trajectories that stand in for visual tool use (source: K2.5 section 2.2).

No image is seen here. Visual operations are written as IPython programs over arrays; what that wakes on real images
is measured before joint RL trains on any.
"""

from __future__ import annotations

from components.runtime.manifest import Manifest
from components.runtime.step import StepContext
from components.zero_vision_sft.config import Config
from model.data.mixtures import TRAJECTORIES
from model.train.checkpoint import load_parent
from model.train.loop import train
from model.train.phase import Phase


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    # 1. Data: conversations with tools; the loss covers the assistant's turns only.
    data = context.data(inputs["data"])
    stream = data.mixture(TRAJECTORIES, tokens_per_row=config.tokens_per_row, rows=config.rows, seed=config.seed)

    # 2. Model. The vision tower and projector see no image and get no gradient.
    model = load_parent(context.fetch(inputs["parent"]), data.tokenizer)

    # 3. Train.
    phase = Phase(
        stream, config.steps, config.learning_rate, checkpoint_every=config.checkpoint_every,
        products=config.products, expert_precision=config.expert_precision,
    )  # fmt: skip
    train(model, [phase], data.path, context, context.ranks)
    return context.checkpoints.newest
