"""The weights that a chain of training steps starts from."""

from __future__ import annotations

from model.boundary.errors import MoonflowError
from model.codec.tokenizer import Tokenizer
from model.network.config import preset
from model.network.initial import new_model
from model.network.multimodal import KimiK25


def first_weights(name: str, tokenizer: Tokenizer, seed: int) -> KimiK25:
    """A model that has learned nothing, in the preset's shape; MoonflowError if that has another vocabulary."""
    shape = preset(name)
    if shape.text_config.vocab_size != tokenizer.vocab_size:
        raise MoonflowError(
            f"wrong tokenizer: preset {name} has {shape.text_config.vocab_size} tokens, the data's tokenizer "
            f"{tokenizer.vocab_size}; set prepare_data.tokenizer_ranks to {shape.text_config.vocab_size - 256}"
        )
    return new_model(shape, seed)
