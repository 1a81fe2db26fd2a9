"""ViT pre-training: the vision encoder learns to caption, by cross-entropy alone (source: K2.5 section 4, Table 3).

The paper captions through Moonlight-16B, an existing language model. There is none at this size, so the decoder that
later stages train serves as the captioner and learns along, on text too, so that it stays one (ours). Then, very
briefly, the projector alone.
"""

from __future__ import annotations

from dataclasses import replace

from components.runtime.checkpoints.manifest import Manifest
from components.runtime.step import StepContext
from components.vit_pretrain.config import Config
from model.data.order.mixtures import mixtures
from model.data.order.shares import blend
from model.optimizer.optimization import Optimization
from model.train.first_weights import first_weights
from model.train.loop import train
from model.train.phase import Phase


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    # 1. Data: captions, OCR, grounding, counts, charts and video; text for the captioner.
    data = context.data(inputs["data"])
    shares = mixtures(config.mixture)
    text, vision = data.with_user_families(shares.text, shares.vision[0][1])
    weights = blend((text, config.text_ratio), (vision, 1 - config.text_ratio))
    stream = data.mixture(weights, tokens_per_row=config.tokens_per_row, rows=config.rows, seed=config.seed)

    # 2. Model: random weights in the preset's shape.
    model = first_weights(config.preset, data.tokenizer, config.seed, context.ranks.expert_share)

    # 3. Caption: everything learns. 4. Align: the projector only.
    caption = Optimization(
        config.steps, config.learning_rate, products=config.products, micro_batch_tokens=config.micro_batch_tokens
    )
    rate = config.learning_rate * caption.final_ratio
    align = replace(caption, steps=config.projector_steps, learning_rate=rate, trainable=("mm_projector",))
    phases = [Phase(stream, caption, config.checkpoint_every), Phase(stream, align)]
    train(model, phases, data.path, context, context.ranks)
    return context.checkpoints.newest
