"""Checkpoint folders into models (source: the released checkpoint).

A model is built on the meta device, compared with the files' headers, given memory, and filled one tensor at a time:
loading takes the memory of the model and of one tensor. Where ranks divide the routed experts, each builds and reads
its own: an expert's matrices are tensors of the files, and those of the others are left there.
"""

from __future__ import annotations

from pathlib import Path

import torch

from model.boundary.errors import MoonflowError
from model.boundary.untrusted_text import read_json
from model.checkpoint.file_names import CONFIG, PROCESSOR
from model.checkpoint.stored_tensors import StoredTensors
from model.checkpoint.tensor_names import released_views
from model.codec.image import ImageConfig, as_image_config
from model.network.config import ModelConfig, VisionConfig, load_config
from model.network.construction import allocate, build_on_meta
from model.network.expert_share import ALL_EXPERTS, ExpertShare
from model.network.multimodal import KimiK25


def load_checked_config(folder: Path) -> ModelConfig:
    """The config of a checkpoint folder, if its weights are of that shape.

    The comparison takes a model without memory and the files' headers. So a config that lies costs nothing, and a model
    that is built from this config needs no more memory than the size of the files says.

    Raises:
        MoonflowError: naming the file and the key, or the first tensor, that is wrong.
    """
    config = load_config(folder / CONFIG)
    _check_shapes(config, StoredTensors(folder))
    return config


def load_model(folder: Path, dtype: torch.dtype = torch.float32, share: ExpertShare = ALL_EXPERTS) -> KimiK25:
    """The model that a checkpoint folder describes, with its weights, in evaluation mode.

    Args:
        dtype: of the weights in memory, whatever the files have; the routers' correction biases stay float32.
        share: which of the routed experts it has; the others are not read.

    Raises:
        MoonflowError: as ``load_checked_config``, before there is memory for the model; the experts do not divide
            evenly; a damaged file.
    """
    config, stored = load_config(folder / CONFIG), StoredTensors(folder)
    _check_shapes(config, stored)
    model = build_on_meta(config, share)
    allocate(model, dtype)
    _fill(model, stored)
    return model.eval()


def load_weights(model: KimiK25, folder: Path) -> None:
    """Fill ``model`` from a checkpoint folder, in the dtype and on the device that the model has, with its experts.

    Raises:
        MoonflowError: a tensor, which is named with its file, is missing, unknown or misshapen, and no weight was
            changed; or a file is damaged, and some weights may have been changed.
    """
    stored = StoredTensors(folder)
    _check_shapes(model.config, stored)
    _fill(model, stored)


def _check_shapes(config: ModelConfig, stored: StoredTensors) -> None:
    """Raise MoonflowError, naming the tensor, if one is missing, unknown or misshapen."""
    where, unknown = stored.path, dict(stored.shapes)
    for name, weight in released_views(build_on_meta(config).state_dict()):
        if (found := unknown.pop(name, None)) is None:
            raise MoonflowError(f"{where}: tensor {name} is missing; config.json and weights disagree")
        if found != weight.shape:
            raise MoonflowError(f"{where}: tensor {name} is {list(found)}, config.json asks for {list(weight.shape)}")
    for name in sorted(unknown):
        raise MoonflowError(f"{where}: tensor {name} is unknown; config.json and weights disagree")


@torch.no_grad()
def _fill(model: KimiK25, stored: StoredTensors) -> None:
    first = next((experts.held.start for experts in model.experts()), 0)
    for name, weight in released_views(model.state_dict(), first):
        weight.copy_(stored.read(name))


def load_image_config(folder: Path) -> ImageConfig:
    """How a checkpoint's images are prepared.

    Raises:
        MoonflowError: its preprocessor_config.json is missing or wrong, or cuts other patches than config.json says.
    """
    path = folder / PROCESSOR
    try:
        text = path.read_text()
    except (OSError, ValueError) as error:
        raise MoonflowError(f"{path} gives no usable media_proc_cfg ({error}); export the checkpoint again") from error
    found = parse_image_config(text, str(path))
    check_patches(found, load_config(folder / CONFIG).vision_config, str(path))
    return found


def parse_image_config(text: str, where: str) -> ImageConfig:
    """Read the text of a preprocessor_config.json; raises MoonflowError, which names ``where``, if it is wrong."""
    try:
        return as_image_config(read_json(text)["media_proc_cfg"])
    except (KeyError, TypeError, ValueError) as error:
        raise MoonflowError(f"{where} gives no usable media_proc_cfg ({error}); export the checkpoint again") from error


def check_patches(images: ImageConfig, vision: VisionConfig, where: str) -> None:
    """MoonflowError, which names ``where``, unless images are cut into the patches that the vision tower takes."""
    cut, wanted = (images.patch_size, *2 * (images.merge_kernel_size,)), (vision.patch_size, *vision.merge_kernel_size)
    if cut != wanted:
        raise MoonflowError(
            f"{where} cuts patches of {cut[0]} pixels, {cut[1]} x {cut[2]} to a token, but config.json says "
            f"{wanted[0]}, {wanted[1]} x {wanted[2]}; export the checkpoint again"
        )
