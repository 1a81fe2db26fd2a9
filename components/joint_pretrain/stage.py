"""Joint pre-training: text and vision together from the start, at a constant low vision ratio
(source: K2.5 section 2.1).

Early fusion at a low ratio beats late fusion at a high one under equal budgets (K2.5 Table 1).
"""

from __future__ import annotations

from components.joint_pretrain.config import Config
from components.runtime.manifest import Manifest
from components.runtime.step import StepContext
from model.data.mixtures import TEXT, VISION, Mixture
from model.data.schedule import Schedule
from model.train.checkpoint import load_parent
from model.train.loop import train
from model.train.phase import Phase


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    # 1. Data: one mixture for the whole stage, unless vision is to come later.
    data = context.data(inputs["data"])
    stream = data.mixture(
        fusion(config.vision_ratio, config.vision_start, *data.joined(TEXT, VISION)),
        tokens_per_row=config.tokens_per_row,
        rows=config.rows,
        seed=config.seed,
        steps=config.steps,
    )

    # 2. Model: the encoder and projector that learned to caption; ViT and language model both learn on.
    model = load_parent(context.fetch(inputs["parent"]), data.tokenizer)

    # 3. Train.
    phase = Phase(
        stream, config.steps, config.learning_rate, checkpoint_every=config.checkpoint_every, products=config.products
    )
    train(model, [phase], data.path, context, context.ranks)
    return context.checkpoints.newest


def fusion(vision_ratio: float, vision_start: float, text: Mixture = TEXT, vision: Mixture = VISION) -> Schedule:
    """Text alone for a share ``vision_start`` of the training, then ``vision_ratio`` of the tokens are vision."""
    points = [(0.0, vision_ratio)] if vision_start == 0 else [(0.0, 0.0), (vision_start, vision_ratio)]
    return Schedule.of_vision(points, text, vision)
