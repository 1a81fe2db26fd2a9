"""The tokenizer and the image settings of a checkpoint, for data that it is to be trained on."""

from __future__ import annotations

import shutil
from pathlib import Path

from components.runtime.checkpoints import manifest as manifests
from components.runtime.step import StepContext
from model.boundary.errors import MoonflowError
from model.checkpoint.export import require_vocabulary
from model.checkpoint.file_names import CONFIG, PROCESSOR, TOKENIZER_FILES, is_licence
from model.checkpoint.folder import inherited
from model.checkpoint.load import load_image_config
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.network.config import load_config


def take_over(context: StepContext, checkpoint: str, folder: Path) -> tuple[Tokenizer, ImageConfig]:
    """Copy tokenizer, image settings and licence of the checkpoint at this address into ``folder``; returns the first
    two. Its weights are not fetched.

    Raises:
        MoonflowError: it lacks a file, a file is wrong, or its tokenizer is not that of its model.
    """
    needed = (CONFIG, PROCESSOR, *TOKENIZER_FILES)
    there = [file.name for file in manifests.read(context.store, checkpoint).files]
    if missing := [name for name in needed if name not in there]:
        raise MoonflowError(f"{checkpoint} lacks {', '.join(missing)}: give a whole checkpoint as the input tokenizer")
    source = context.fetch(checkpoint, [*needed, *(name for name in there if is_licence(name))])
    tokenizer = Tokenizer.load(source)
    require_vocabulary(load_config(source / CONFIG), tokenizer, f"give {checkpoint} the tokenizer it was trained with")
    image_config = load_image_config(source)
    for name in inherited(source):
        shutil.copyfile(source / name, folder / name)
    return tokenizer, image_config
