"""The weights that a chain of training steps starts from."""

from __future__ import annotations

from model.boundary.errors import MoonflowError
from model.codec.tokenizer import Tokenizer
from model.network.config import preset
from model.network.expert_share import ALL_EXPERTS, ExpertShare
from model.network.initial import new_model
from model.network.multimodal import KimiK25


def first_weights(name: str, tokenizer: Tokenizer, seed: int, share: ExpertShare = ALL_EXPERTS) -> KimiK25:
    """A model that has learned nothing, in the preset's shape, or this rank's part of it.

    Args:
        share: which of the routed experts it has (``Ranks.expert_share``).

    Raises:
        MoonflowError: the preset has another vocabulary than the tokenizer; the experts do not divide evenly.
    """
    shape = preset(name)
    if shape.text_config.vocab_size != tokenizer.vocab_size:
        raise MoonflowError(
            f"wrong tokenizer: preset {name} has {shape.text_config.vocab_size} tokens, the data's tokenizer "
            f"{tokenizer.vocab_size}; set prepare_data.tokenizer_ranks to {shape.text_config.vocab_size - 256}"
        )
    return new_model(shape, seed, share)
