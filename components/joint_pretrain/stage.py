"""Joint pre-training: text and vision together from the start, at a constant low vision ratio
(source: K2.5 section 2.1).

Early fusion at a low ratio beats late fusion at a high one under equal budgets (K2.5 Table 1).
"""

from __future__ import annotations

from components.joint_pretrain.config import Config
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.step import StepContext
from model.checkpoint.folder import load_parent
from model.data.order.mixtures import mixtures
from model.data.order.schedule import fusion
from model.optimizer.optimization import Optimization
from model.train.loop import train
from model.train.phase import Phase


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    # 1. Data: text and vision in one ratio for the whole stage, unless vision is to come later. What vision consists of
    # may change on the way.
    data, shares = context.data(inputs["data"]), mixtures(config.mixture)
    text, _ = data.with_user_families(shares.text, {})
    vision = [(start, data.with_user_families({}, mixture)[1]) for start, mixture in shares.vision]
    stream = data.mixture(
        fusion(config.vision_ratio, config.vision_start, text, vision),
        tokens_per_row=config.tokens_per_row,
        rows=config.rows,
        seed=config.seed,
        steps=config.steps,
    )

    # 2. Model: the encoder and projector that learned to caption; ViT and language model both learn on.
    model = load_parent(context.fetch(inputs["parent"]), data.tokenizer, context.ranks.expert_share)

    # 3. Train.
    optimization = Optimization(
        config.steps, config.learning_rate, products=config.products, micro_batch_tokens=config.micro_batch_tokens
    )
    train(model, [Phase(stream, optimization, config.checkpoint_every)], data.path, context, context.ranks)
    return context.checkpoints.newest
