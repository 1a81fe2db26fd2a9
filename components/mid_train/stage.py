"""Mid-training: better text, long documents and trajectories, on rows lengthened by YaRN (source: K2.5 Table 3)."""

from __future__ import annotations

from components.mid_train.config import Config
from components.runtime.manifest import Manifest
from components.runtime.step import StepContext
from model.config import RopeScaling
from model.data.folder import DataFolder
from model.data.mixtures import LONG_TEXT, VISION, blend
from model.train.checkpoint import load_parent
from model.train.loop import train
from model.train.phase import Phase


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    # 1. Data: reasoning and long, high-quality text beside the vision mixture.
    data = DataFolder(context.fetch(inputs["data"]))
    weights = blend((LONG_TEXT, 1 - config.vision_ratio), (VISION, config.vision_ratio))
    stream = data.mixture(weights, tokens_per_row=config.tokens_per_row, rows=config.rows, seed=config.seed)

    # 2. Model: positions interpolated so that the longer rows look like the ones seen before.
    seen = round(config.tokens_per_row / config.context_factor)
    yarn = RopeScaling(factor=config.context_factor, original_max_position_embeddings=seen)
    model = load_parent(context.fetch(inputs["parent"]), data.tokenizer, yarn, config.tokens_per_row)

    # 3. Train.
    phase = Phase(
        stream, config.steps, config.learning_rate, checkpoint_every=config.checkpoint_every, products=config.products
    )
    train(model, [phase], data.path, context, context.ranks)
    return context.checkpoints.newest
