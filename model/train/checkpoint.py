"""A training state as a folder of plain files: released weights, tokenizer, optimizer, loop state; no pickle (ours)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from model.config import RopeScaling, load_config
from model.errors import MoonflowError
from model.hf import load_weights, save_model
from model.multimodal import KimiK25
from model.tokenizer import Tokenizer
from model.train.optimizer import MuonClip

OPTIMIZER, STATE = "optimizer.safetensors", "training_state.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def save_checkpoint(
    folder: Path, model: KimiK25, tokenizer_folder: Path, optimizer: MuonClip | None, state: dict[str, Any]
) -> None:
    """Write everything a later process needs to go on as if nothing had happened.

    ``state`` is JSON-able; torch's global RNG state is added under ``rng``. Without an optimizer the folder is for
    inference only.
    """
    save_model(model, folder)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_folder / name, folder / name)
    if optimizer is not None:
        save_file({key: value.contiguous() for key, value in optimizer.named_state().items()}, folder / OPTIMIZER)
        rng = torch.get_rng_state().numpy().tobytes().hex()
        (folder / STATE).write_text(json.dumps({**state, "rng": rng}) + "\n")


def load_checkpoint(folder: Path, model: KimiK25, optimizer: MuonClip) -> dict[str, Any]:
    """Restore weights, optimizer and torch's RNG; returns the saved ``state``.

    Raises:
        MoonflowError: naming the missing or damaged file.
    """
    load_weights(model, folder)
    try:
        optimizer.load_named_state(load_file(folder / OPTIMIZER))
    except (OSError, SafetensorError) as error:
        raise MoonflowError(f"{folder / OPTIMIZER} cannot be read ({error}); choose an earlier checkpoint") from error
    state = read_state(folder)
    torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state["rng"]), dtype=torch.uint8))
    return state


def read_state(folder: Path) -> dict[str, Any]:
    """The loop state of a checkpoint; MoonflowError when there is none or it is damaged."""
    try:
        return json.loads((folder / STATE).read_text())
    except (OSError, ValueError) as error:
        raise MoonflowError(
            f"{folder / STATE} cannot be read ({error}); choose a checkpoint with training state"
        ) from error


def load_parent(
    folder: Path, tokenizer: Tokenizer, rope_scaling: RopeScaling | None = None, max_positions: int = 0
) -> KimiK25:
    """The model an earlier stage left, optionally with its context extended by YaRN to ``max_positions``.

    Raises:
        MoonflowError: when it was trained with another tokenizer than the data's.
    """
    theirs = Tokenizer.load(folder)
    if theirs.digest != tokenizer.digest:
        raise MoonflowError(
            f"wrong tokenizer: checkpoint {folder} was trained with {theirs.digest[:12]}, "
            f"the data with {tokenizer.digest[:12]}; "
            "use the data folder the checkpoint came from, or train again from prepare_data"
        )
    config = load_config(folder / "config.json")
    if rope_scaling is not None:
        extended = {"rope_scaling": rope_scaling, "max_position_embeddings": max_positions}
        config = config.model_copy(update={"text_config": config.text_config.model_copy(update=extended)})
    model = KimiK25(config)
    load_weights(model, folder)
    return model
