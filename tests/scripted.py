"""A real checkpoint whose model follows a script: each token tells the next, whatever the prompt was."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch

from model.network.config import preset
from model.network.initial import new_model
from model.network.multimodal import KimiK25
from tests.tiny_folders import tiny_tokenizer
from tests.training import save_checkpoint


def tokens_of(parts: Sequence[str]) -> list[int]:
    """The tokens of the parts in their order, ``<...>`` being special ones; no two may be the same."""
    tokenizer = tiny_tokenizer()
    tokens = [
        token
        for part in parts
        for token in ([tokenizer.token_id(part)] if part.startswith("<") else tokenizer.encode(part))
    ]
    assert len(set(tokens)) == len(tokens)
    return tokens


def scripted_model(parts: Sequence[str], context: int | None = None) -> KimiK25:
    """The tiny network with its layers silenced: what is left, embedding and head, follows the script."""
    config = preset("tiny")
    if context is not None:
        text = config.text_config.model_copy(update={"max_position_embeddings": context})
        config = config.model_copy(update={"text_config": text})
    model = new_model(config, seed=0)
    with torch.no_grad():
        for name, parameter in model.language_model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
                parameter.zero_()
        embedding, head = model.language_model.model.embed_tokens.weight, model.language_model.lm_head.weight
        head.zero_()
        for token, following in pairwise(tokens_of(parts)):
            direction = embedding[token] / embedding[token].norm()
            head[following] = 20 * direction
    return model


def write_scripted(folder: Path, parts: Sequence[str], context: int | None = None) -> Path:
    """The model as a checkpoint folder, with the preset's context or another one."""
    tokenizer_folder = folder.parent / f"{folder.name}-tokenizer"
    tiny_tokenizer().save(tokenizer_folder)
    save_checkpoint(folder, scripted_model(parts, context), tokenizer_folder, None, {})
    return folder
