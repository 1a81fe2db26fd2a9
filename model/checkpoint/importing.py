"""A checkpoint that somebody else wrote, into a checkpoint folder of ours (source: the released checkpoint).

What is read: Kimi K2.5 and the models of its architecture (K2.6, K2.7-Code) in safetensors, with INT4 experts as
released, in bfloat16 or in float32, in one file or several, also under the names that transformers' ``save_pretrained``
gives. What is not known is refused by its name, before any weight is fetched if config.json or the index show it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.boundary.config_bounds import MAX_BYTES
from model.boundary.errors import MoonflowError
from model.boundary.untrusted_text import read_json
from model.checkpoint.export import require_vocabulary, save_description
from model.checkpoint.file_names import CONFIG, PROCESSOR, TOKENIZER_FILES, is_licence
from model.checkpoint.load import check_patches, load_checked_config, parse_image_config
from model.checkpoint.shards import ShardWriter
from model.checkpoint.source_files import HashedFiles, LocalFolder, SourceFiles
from model.checkpoint.source_weights import SourceWeights
from model.checkpoint.tensor_names import CORRECTION_BIAS
from model.codec.image import ImageConfig
from model.codec.tiktoken_file import RANKS, check_special_names, read_tiktoken
from model.codec.tokenizer import Tokenizer
from model.network.config import ModelConfig, TextConfig, VisionConfig, parse_config

__all__ = ["Imported", "LocalFolder", "SourceFiles", "import_checkpoint"]

SHARD_BYTES = (16 << 20, 1 << 30)  # at least and at most, of a file that is written, which memory holds (ours)
LICENCE_BYTES = 4 << 20  # of a licence or of notices, which every release carries (ours)

_ARCHITECTURES = {
    "": ("KimiK25ForConditionalGeneration", "Kimi_K25ForConditionalGeneration"),  # the second as transformers spells it
    "text_config": ("DeepseekV3ForCausalLM",),
}


@dataclass(frozen=True)
class Imported:
    """What was imported.

    Attributes:
        config: of the folder that was written.
        sha256: name -> digest, in hex, of every file of the source that was read.
        licence: name of the source's licence, which the folder has, too, with any notices; None if there is none.
        precision: how the source stores its weights: "float32", "bfloat16", or "int4" for the routed experts.
        revision: a digest, in hex, of ``sha256``: it names this state of the source.
        other_groups: INT4 groups of the source that an export to INT4 gives other levels, since their largest is not 7.
    """

    config: ModelConfig
    sha256: dict[str, str]
    licence: str | None
    precision: str
    revision: str
    other_groups: int


def import_checkpoint(source: SourceFiles, out: Path) -> Imported:
    """Write ``out`` as a checkpoint folder that ``model.checkpoint.load`` reads and that trains on.

    Weights of float32 and bfloat16 stay what they are. INT4 is unpacked to the type of its scales, bfloat16 in the
    released checkpoint: level times scale, rounded, as compressed-tensors gives it. An export to INT4 packs the same
    levels again where a group's largest is 7 or -7; its scale may be one step of bfloat16 off, since seven scales are
    not always a bfloat16 number. Other groups have other levels then, and are counted.
    The released ``tiktoken.model`` becomes a tokenizer.json with the same ranks. The processor's code and the chat
    template are ours. A licence file, and notices, are copied.

    Memory holds one file that is written and a few tensors. It is as large as the largest of the source's files that
    was read so far, within ``SHARD_BYTES``.

    The folder appears whole or not at all: until it is complete it is called ``<out>.unfinished``. The next import to
    ``out`` replaces what a killed one left there.

    Args:
        out: does not exist or is empty.

    Raises:
        MoonflowError: in one line, naming the file and the key or tensor: it is missing, damaged, unknown, of another
            shape, type or quantisation; ``out`` holds something, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MoonflowError(f"{out} holds something already; import to a folder that is new or empty")
    files = HashedFiles(source)
    config = _config(files)
    images = _image_config(files, config)
    tokenizer = _tokenizer(files)
    config = _as_ours(config, tokenizer)
    require_vocabulary(config, tokenizer, f"{files.where} mixes files of two models: fetch it again")
    weights = SourceWeights(files, config)
    made = out.with_name(f"{out.name}.unfinished")
    shutil.rmtree(made, ignore_errors=True)
    try:
        made.mkdir(parents=True)
        least, most = SHARD_BYTES
        writer = ShardWriter(made, least)
        dtypes: set[torch.dtype] = set()
        for name, tensor in weights.tensors():
            writer.shard_bytes = min(max(weights.largest_file, least), most)
            writer.add(name, tensor)
            if not name.endswith(CORRECTION_BIAS):
                dtypes.add(tensor.dtype)
        writer.finish()
        stored = "float32" if torch.float32 in dtypes else "bfloat16"
        config = config.model_copy(update={"dtype": stored, "quantization_config": None})
        save_description(config, made, images)
        tokenizer.save(made)
        licence = _copy_licence(files, made)
        load_checked_config(made)  # what is there now is what was asked for
        made.rename(out)
    except OSError as error:
        raise MoonflowError(f"the import to {out} failed: {error}; there must be space for the weights") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    precision = "int4" if weights.int4 else stored
    return Imported(config, dict(files.sha256), licence, precision, files.revision(), weights.other_groups)


def _config(files: HashedFiles) -> ModelConfig:
    """The source's config, of an architecture that is known."""
    where, text = files.place(CONFIG), files.text(CONFIG, MAX_BYTES)
    try:
        raw: Any = read_json(text)
    except ValueError as error:
        raise MoonflowError(f"{where} is not a usable model config: it is not JSON ({error})") from error
    for part, known in _ARCHITECTURES.items():
        said = raw.get(part, {}) if part and isinstance(raw, dict) else raw
        names = said.get("architectures") if isinstance(said, dict) else None
        for name in names if isinstance(names, list) else ():
            if name not in known:
                raise MoonflowError(
                    f"{where}: architecture {str(name)[:80]!r} is unknown; only {known[0]} can be imported, which is "
                    "that of Kimi K2.5, K2.6 and K2.7-Code"
                )
    return parse_config(text, where)


def _image_config(files: HashedFiles, config: ModelConfig) -> ImageConfig:
    where = files.place(PROCESSOR)
    images = parse_image_config(files.text(PROCESSOR, MAX_BYTES), where)
    check_patches(images, config.vision_config, where)
    return images


def _tokenizer(files: HashedFiles) -> Tokenizer:
    """From the released two files, or from the tokenizer.json of an export of ours."""
    ours, names = TOKENIZER_FILES
    if RANKS in files.names:
        with files.open(RANKS) as path:
            tokenizer = read_tiktoken(path, files.place(RANKS))
        check_special_names(files.text(names, MAX_BYTES), files.place(names), tokenizer)
        return tokenizer
    if ours not in files.names:
        raise MoonflowError(f"{files.where} has no tokenizer, neither {RANKS} nor {ours}; fetch the whole checkpoint")
    with files.open(ours) as path:
        return Tokenizer.read(path, files.place(ours))


def _as_ours(config: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The config with the values of our own exports where others name the same thing otherwise: the types of the two
    parts, and [EOS] as the end of a text, for which some releases give <|im_end|>. Generation stops at both."""
    text: dict[str, Any] = {"model_type": TextConfig.model_fields["model_type"].default}
    vision = {"model_type": VisionConfig.model_fields["model_type"].default}
    end = {"eos_token_id": tokenizer.eos_id}
    if config.text_config.eos_token_id == tokenizer.im_end_id:
        text |= end
    whole: dict[str, Any] = end if config.eos_token_id == tokenizer.im_end_id else {}
    parts = {
        "text_config": config.text_config.model_copy(update=text),
        "vision_config": config.vision_config.model_copy(update=vision),
    }
    return config.model_copy(update=whole | parts)


def _copy_licence(files: HashedFiles, folder: Path) -> str | None:
    """Copy the files that say under which terms the others may be used; returns the name of the first."""
    licences = sorted(filter(is_licence, files.names))
    for name in licences:
        with files.open(name) as path:
            files.require_size(name, path, LICENCE_BYTES)
            shutil.copyfile(path, folder / name)
    return licences[0] if licences else None
