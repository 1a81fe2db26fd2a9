"""A training state as a folder of plain files: released weights, tokenizer, optimizer, loop state; no pickle (ours)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from model.boundary.errors import MoonflowError
from model.checkpoint.export import save_part
from model.checkpoint.file_names import PROCESSOR, TOKENIZER_FILES, is_licence
from model.checkpoint.load import load_model
from model.checkpoint.slices import Slice, SliceReader, file_name, is_slices, write_slices
from model.codec.tokenizer import Tokenizer
from model.network.config import ModelConfig
from model.network.expert_share import ALL_EXPERTS, ExpertShare
from model.network.multimodal import KimiK25

OPTIMIZER, STATE = file_name(), "training_state.json"
SUCCESSES = "successes"
"""The folder in a checkpoint with the successful episodes that its training kept (``model.rl.successes``)."""


class HasNamedState(Protocol):
    """What holds an optimizer's state: an optimizer, or the engine of one rank."""

    def named_state(self) -> Mapping[str, Tensor | Slice]:
        """``<parameter name>/<slot>`` -> the tensor, or the part of it that this rank holds."""
        ...

    def load_named_state(self, tensors: SliceReader) -> None:
        """Replace the state, or this rank's part of it, by what was saved under the same keys."""
        ...


def state_text(state: Mapping[str, Any]) -> str:
    """JSON of ``state`` as it is now, with torch's global random state under ``rng``."""
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
    share: ExpertShare = ALL_EXPERTS,
) -> None:
    """Write this rank's files of a checkpoint.

    Args:
        weights: the model's ``state_dict``, or this rank's part (``model.checkpoint.export.save_part``). None on a
            rank whose weights others write: it writes only slices.
        tokenizer_folder: where the files of ``inherited`` are.
        slices: the part of the optimizer's state that this rank holds; None leaves training state out.
        text: of ``state_text``.
        share: which of the experts ``weights`` has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if weights is not None:
        save_part(config, weights, folder, share)
    if rank == 0:
        for name in inherited(tokenizer_folder):
            shutil.copyfile(tokenizer_folder / name, folder / name)
        if slices is not None:
            (folder / STATE).write_text(text)
    if slices is not None:
        write_slices(folder, slices, rank, world)


def load_training_state(folder: Path, optimizer: HasNamedState) -> dict[str, Any]:
    """Restore the optimizer's state and torch's random state, but not the weights; returns the saved loop state.

    Raises:
        MoonflowError: naming the missing or damaged file.
    """
    with SliceReader(folder) as reader:
        optimizer.load_named_state(reader)
    state = read_state(folder)
    torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state["rng"]), dtype=torch.uint8))
    return state


def serves(name: str) -> bool:
    """Whether a checkpoint's file of that name is part of the model, and not only of its training."""
    return name != STATE and not is_slices(name) and not name.startswith(f"{SUCCESSES}/")


def read_state(folder: Path) -> dict[str, Any]:
    """The loop state of a checkpoint; MoonflowError if there is none or it is damaged."""
    try:
        return json.loads((folder / STATE).read_text())
    except (OSError, ValueError) as error:
        raise MoonflowError(
            f"{folder / STATE} cannot be read ({error}); choose a checkpoint with training state"
        ) from error


def load_parent(folder: Path, tokenizer: Tokenizer, share: ExpertShare = ALL_EXPERTS) -> KimiK25:
    """The model that an earlier stage saved, or this rank's part of it.

    Args:
        share: which of the routed experts it has (``Ranks.expert_share``).

    Raises:
        MoonflowError: it was trained with another tokenizer than the data's; and as ``load_model``.
    """
    theirs = Tokenizer.load(folder)
    if theirs.digest != tokenizer.digest:
        raise MoonflowError(
            f"wrong tokenizer: checkpoint {folder} was trained with {theirs.digest[:12]}, "
            f"the data with {tokenizer.digest[:12]}; "
            "use the data folder the checkpoint came from, or train again from prepare_data"
        )
    return load_model(folder, share=share).train()


def inherited(folder: Path) -> list[str]:
    """What a checkpoint takes over from the folder of its data: the tokenizer, and what an imported one came with.

    That is how its images are prepared, if that is told there, and its licence.
    """
    there = sorted(path.name for path in folder.iterdir() if path.is_file())
    return [*TOKENIZER_FILES, *(name for name in there if name == PROCESSOR or is_licence(name))]
