"""Models into checkpoint folders that transformers, vLLM and SGLang load as they are (source: the released checkpoint).

A folder holds config.json, generation_config.json, the weights as safetensors under the released names, tokenizer.json
with tokenizer_config.json, preprocessor_config.json with the code that it names, and the chat template.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.boundary.errors import MoonflowError
from model.checkpoint.file_names import (
    CONFIG,
    GENERATION,
    INDEX,
    PROCESSOR,
    REMOTE,
    REMOTE_FILES,
    WEIGHTS,
    weights_file,
)
from model.checkpoint.shards import write_index
from model.checkpoint.stored_tensors import opened
from model.checkpoint.tensor_names import CORRECTION_BIAS, expert_number, released_tensors, released_views
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.network.config import AUTO_MAP, ModelConfig, QuantizationConfig, load_config
from model.network.construction import build_on_meta
from model.network.expert_share import ExpertShare
from model.network.multimodal import KimiK25
from model.network.quantization import packed_experts

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def save_model(
    model: KimiK25,
    folder: Path,
    expert_precision: str = "full",
    dtype: torch.dtype = torch.float32,
    image_config: ImageConfig | None = None,
) -> None:
    """Write everything but the tokenizer's files; the arguments are those of ``save_weights``."""
    save_weights(model.config, model.state_dict(), folder, expert_precision, dtype, image_config)


def save_weights(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    folder: Path,
    expert_precision: str = "full",
    dtype: torch.dtype = torch.float32,
    image_config: ImageConfig | None = None,
) -> None:
    """Write everything but the tokenizer's files.

    Args:
        weights: the model's ``state_dict``, or a copy of it.
        expert_precision: the routed experts as they are ("full") or as INT4 (``model.network.quantization``).
        dtype: of the stored weights: float32, or bfloat16 as the released checkpoint has it.
        image_config: how the model's images are prepared; the released values if not given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors, quantization = released_tensors(weights), None
    if expert_precision == "int4":  # before they are cast to ``dtype``: weights in bfloat16 give other levels
        tensors, quantization = packed_experts(tensors), QuantizationConfig()
    tensors = {
        name: value.to(dtype) if value.is_floating_point() and not name.endswith(CORRECTION_BIAS) else value
        for name, value in tensors.items()
    }
    config = config.model_copy(update={"quantization_config": quantization, "dtype": DTYPES[dtype]})
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    save_description(config, folder, image_config)


def save_part(config: ModelConfig, weights: Mapping[str, Tensor], folder: Path, share: ExpertShare) -> None:
    """Write what one rank holds of a model, in float32: a file of its own, so that no rank needs the whole.

    The first part also has what is no expert's, and writes the index and the files that ``save_weights`` adds.

    Args:
        weights: the part of the model's ``state_dict``; of another part than the first, the experts alone.
        share: which of the experts these are.
    """
    if share.parts == 1:
        save_weights(config, weights, folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    numbers = share.of(config.text_config.n_routed_experts)
    tensors = released_tensors(weights, numbers.start)
    save_file(tensors, folder / weights_file(share.number, share.parts), metadata={"format": "pt"})
    if share.number > 0:
        return
    file_of, total = {}, 0
    for name, view in released_views(build_on_meta(config).state_dict()):
        file_of[name] = weights_file((expert_number(name) or 0) // len(numbers), share.parts)
        total += view.nbytes
    write_index(folder, file_of, total)
    save_description(config.model_copy(update={"quantization_config": None, "dtype": "float32"}), folder)


def save_description(config: ModelConfig, folder: Path, image_config: ImageConfig | None = None) -> None:
    """Write everything but the weights and the tokenizer's files; ``image_config`` as in ``save_weights``."""
    config.save(folder / CONFIG)
    _save_generation(config, folder)
    _save_processing(image_config or ImageConfig(), folder)


def export(
    model: KimiK25,
    tokenizer: Tokenizer,
    folder: Path,
    expert_precision: str = "full",
    dtype: torch.dtype = torch.float32,
    image_config: ImageConfig | None = None,
) -> None:
    """Write a folder that transformers, vLLM and SGLang load as it is; the arguments are those of ``save_weights``.

    Raises:
        MoonflowError: the model has another vocabulary than the tokenizer.
    """
    require_vocabulary(model.config, tokenizer, "export it with the tokenizer that it was trained with")
    save_model(model, folder, expert_precision, dtype, image_config)
    tokenizer.save(folder)


def require_vocabulary(config: ModelConfig, tokenizer: Tokenizer, remedy: str) -> None:
    """MoonflowError, which ends with ``remedy``, unless the model has the vocabulary and special ids of a tokenizer."""
    ids = (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.media_pad_id)
    asked = (
        config.text_config.vocab_size,
        config.bos_token_id,
        config.eos_token_id,
        config.pad_token_id,
        config.media_placeholder_token_id,
    )
    if ids != asked:
        raise MoonflowError(
            f"the tokenizer's vocabulary and [BOS], [EOS], [PAD], <|media_pad|> are {ids}, but the model has {asked}; "
            f"{remedy}"
        )


def _save_generation(config: ModelConfig, folder: Path) -> None:
    stop = [config.eos_token_id, config.bos_token_id + 2]  # [EOS] and <|im_end|>
    raw = {"bos_token_id": config.bos_token_id, "eos_token_id": stop, "pad_token_id": config.pad_token_id}
    (folder / GENERATION).write_text(json.dumps(raw, indent=2) + "\n")


def _save_processing(image_config: ImageConfig, folder: Path) -> None:
    raw = {
        "auto_map": AUTO_MAP,
        "image_processor_type": "KimiK25VisionProcessor",
        "processor_class": "KimiK25Processor",
        "media_proc_cfg": image_config.model_dump(mode="json"),
    }
    (folder / PROCESSOR).write_text(json.dumps(raw, indent=2) + "\n")
    for name in REMOTE_FILES:
        shutil.copyfile(REMOTE / name, folder / name)


def quantise_checkpoint(folder: Path) -> None:
    """Store the routed experts of a checkpoint folder as INT4, in place; memory for one of its files is enough.

    Raises:
        MoonflowError: naming a missing or damaged file, or a tensor that INT4 does not take.
    """
    config = load_config(folder / CONFIG)
    file_of: dict[str, str] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with opened(path) as file:
            tensors = packed_experts({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (no dict)
        file_of |= dict.fromkeys(tensors, path.name)
        # Under another name first, because tensors are still mapped from the file. Not by ``part_file``, because
        # safetensors would replace the locked part by a file of its own without a lock.
        written = path.with_suffix(".int4")
        save_file(tensors, written, metadata={"format": "pt"})
        written.replace(path)
    if (folder / INDEX).is_file():
        size = sum(path.stat().st_size for path in folder.glob("model*.safetensors"))
        (folder / INDEX).write_text(
            json.dumps({"metadata": {"total_size": size}, "weight_map": file_of}, indent=2) + "\n"
        )
    config.model_copy(update={"quantization_config": QuantizationConfig()}).save(folder / CONFIG)
