"""ViT pre-training: the vision encoder learns to caption, by cross-entropy alone (source: K2.5 section 4, Table 3).

The paper captions through Moonlight-16B, an existing language model. There is none at this size, so the decoder that
later stages train serves as the captioner and learns along, on text too, so that it stays one (ours). Then, very
briefly, the projector alone.
"""

from __future__ import annotations

from components.runtime.manifest import Manifest
from components.runtime.step import StepContext
from components.vit_pretrain.config import Config
from model.config import preset
from model.data.mixtures import TEXT, VISION, blend
from model.errors import MoonflowError
from model.multimodal import KimiK25
from model.tokenizer import Tokenizer
from model.train.loop import train
from model.train.phase import Phase


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    # 1. Data: captions, OCR, grounding, counts, charts and video; text for the captioner.
    data = context.data(inputs["data"])
    text, vision = data.joined(TEXT, VISION)
    weights = blend((text, config.text_ratio), (vision, 1 - config.text_ratio))
    stream = data.mixture(weights, tokens_per_row=config.tokens_per_row, rows=config.rows, seed=config.seed)

    # 2. Model: random weights in the preset's shape.
    model = first_weights(config.preset, data.tokenizer, config.seed)

    # 3. Caption: everything learns. 4. Align: the projector only.
    caption = Phase(
        stream, config.steps, config.learning_rate, checkpoint_every=config.checkpoint_every, products=config.products
    )
    align = Phase(
        stream,
        config.projector_steps,
        config.learning_rate * caption.final_ratio,
        trainable=("mm_projector",),
        products=config.products,
    )
    train(model, [caption, align], data.path, context, context.ranks)
    return context.checkpoints.newest


def first_weights(name: str, tokenizer: Tokenizer, seed: int) -> KimiK25:
    """A model that has learned nothing, in the preset's shape; MoonflowError if that has another vocabulary."""
    shape = preset(name)
    if shape.text_config.vocab_size != tokenizer.vocab_size:
        raise MoonflowError(
            f"wrong tokenizer: preset {name} has {shape.text_config.vocab_size} tokens, the data's tokenizer "
            f"{tokenizer.vocab_size}; set prepare_data.tokenizer_ranks to {shape.text_config.vocab_size - 256}"
        )
    return KimiK25(shape, seed=seed)
