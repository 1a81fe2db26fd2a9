"""A training state as a folder of plain files: released weights, tokenizer, optimizer, loop state; no pickle (ours)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from model.config import ModelConfig
from model.errors import MoonflowError
from model.hf import load_model, load_weights, save_weights
from model.multimodal import KimiK25
from model.tokenizer import Tokenizer
from model.train.slices import Slice, SliceReader, as_slices, file_name, is_slices, write_slices

OPTIMIZER, STATE = file_name(), "training_state.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class Optimizing(Protocol):
    """What holds an optimizer's state: an optimizer, or one rank's engine."""

    def named_state(self) -> Mapping[str, Tensor | Slice]:
        """``<parameter name>/<slot>`` -> the tensor, or the part of it that this rank holds."""
        ...

    def load_named_state(self, tensors: SliceReader) -> None: ...


def save_checkpoint(
    folder: Path, model: KimiK25, tokenizer_folder: Path, optimizer: Optimizing | None, state: Mapping[str, Any]
) -> None:
    """Write everything a later process needs to go on as if nothing had happened; ``write_checkpoint`` in one call.

    Without an optimizer the folder is for inference only.
    """
    slices = None if optimizer is None else as_slices(optimizer.named_state())
    write_checkpoint(folder, model.config, model.state_dict(), tokenizer_folder, slices, state_text(state))


def state_text(state: Mapping[str, Any]) -> str:
    """``state``, which is JSON-able, with torch's global random state under ``rng``: fixed as of now."""
    return json.dumps({**state, "rng": torch.get_rng_state().numpy().tobytes().hex()}) + "\n"


def write_checkpoint(
    folder: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor] | None,
    tokenizer_folder: Path,
    slices: Iterable[Slice] | None,
    text: str,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Write this rank's files of a checkpoint.

    Args:
        weights: the model's ``state_dict``, whole. None on all ranks but the first, who then write nothing but slices.
        slices: what this rank holds of the optimizer's state; None leaves training state out.
        text: of ``state_text``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if weights is not None:
        save_weights(config, weights, folder)
        for name in TOKENIZER_FILES:
            shutil.copyfile(tokenizer_folder / name, folder / name)
        if slices is not None:
            (folder / STATE).write_text(text)
    if slices is not None:
        write_slices(folder, slices, rank, world)


def load_checkpoint(folder: Path, model: KimiK25, optimizer: Optimizing) -> dict[str, Any]:
    """Restore weights, optimizer and torch's RNG; returns the saved ``state``.

    Raises:
        MoonflowError: naming the missing or damaged file.
    """
    load_weights(model, folder)
    return load_training_state(folder, optimizer)


def load_training_state(folder: Path, optimizer: Optimizing) -> dict[str, Any]:
    """``load_checkpoint`` without the weights, for an engine that was opened on them."""
    with SliceReader(folder) as reader:
        optimizer.load_named_state(reader)
    state = read_state(folder)
    torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state["rng"]), dtype=torch.uint8))
    return state


def serves(name: str) -> bool:
    """Whether a checkpoint's file of that name is part of the model, and not only of its training."""
    return name != STATE and not is_slices(name)


def read_state(folder: Path) -> dict[str, Any]:
    """The loop state of a checkpoint; MoonflowError when there is none or it is damaged."""
    try:
        return json.loads((folder / STATE).read_text())
    except (OSError, ValueError) as error:
        raise MoonflowError(
            f"{folder / STATE} cannot be read ({error}); choose a checkpoint with training state"
        ) from error


def load_parent(folder: Path, tokenizer: Tokenizer) -> KimiK25:
    """The model an earlier stage left.

    Raises:
        MoonflowError: when it was trained with another tokenizer than the data's; as ``load_model``.
    """
    theirs = Tokenizer.load(folder)
    if theirs.digest != tokenizer.digest:
        raise MoonflowError(
            f"wrong tokenizer: checkpoint {folder} was trained with {theirs.digest[:12]}, "
            f"the data with {tokenizer.digest[:12]}; "
            "use the data folder the checkpoint came from, or train again from prepare_data"
        )
    return load_model(folder).train()
