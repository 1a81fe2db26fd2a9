"""Between our modules and the released checkpoint, as stock engines and transformers read it (source: the released
checkpoint).

A checkpoint folder holds config.json, generation_config.json, the weights as safetensors under the released names,
tokenizer.json with tokenizer_config.json, preprocessor_config.json with the code that it names, and the chat template.
The only difference of names is the routed experts, which we hold stacked: gate_up [E, 2F, D] and down [E, D, F].
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from model.config import AUTO_MAP, ModelConfig, QuantizationConfig, load_config
from model.errors import MoonflowError
from model.foreign_text import read_json
from model.image import ImageConfig, as_image_config
from model.multimodal import KimiK25
from model.quantization import packed_experts, unpacked_experts, unpacked_shapes
from model.tokenizer import Tokenizer

_T = TypeVar("_T")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, GENERATION, PROCESSOR = "config.json", "generation_config.json", "preprocessor_config.json"
REMOTE = Path(__file__).parent / "remote"
REMOTE_FILES = (
    "processing_kimi_k25.py",
    "image_files.py",
    "video_files.py",
    "media_structure.py",
    "media_errors.py",
    "chat_template.jinja",
)
FILES = (CONFIG, GENERATION, PROCESSOR, *REMOTE_FILES, "tokenizer.json", "tokenizer_config.json")
"""What a folder that can be served holds beside its weights."""

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight$")
_CORRECTION_BIAS = "e_score_correction_bias"  # float32 always: its steps are smaller than bfloat16 can tell
# What ``save_pretrained`` of transformers 5 writes -> the released name.
_TRANSFORMERS_NAMES = (
    (re.compile(r"^language_model\.model\.blocks\."), "language_model.model.layers."),
    (re.compile(r"^model\.mm_projector\."), "mm_projector."),
    (re.compile(r"^vision_tower\.encoder\.patch_embed\."), "vision_tower.patch_embed."),
)


def released_tensors(model: KimiK25) -> dict[str, Tensor]:
    """Every weight under its released name; the experts split, one tensor per expert and matrix."""
    return unstacked_tensors(model.state_dict())


def unstacked_tensors(stacked: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``released_tensors`` of a model's ``state_dict``, or of a copy of it."""
    tensors: dict[str, Tensor] = {}
    for name, value in stacked.items():
        if name.endswith(".mlp.experts.gate_up_proj"):
            prefix, width = name.removesuffix(".gate_up_proj"), value.shape[1] // 2
            for expert, weight in enumerate(value):
                tensors[f"{prefix}.{expert}.gate_proj.weight"] = weight[:width].contiguous()
                tensors[f"{prefix}.{expert}.up_proj.weight"] = weight[width:].contiguous()
        elif name.endswith(".mlp.experts.down_proj"):
            prefix = name.removesuffix(".down_proj")
            for expert, weight in enumerate(value):
                tensors[f"{prefix}.{expert}.down_proj.weight"] = weight.contiguous()
        else:
            tensors[name] = value
    return tensors


def stacked_tensors(released: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``unstacked_tensors``."""
    tensors: dict[str, Tensor] = {}
    experts: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name, value in released.items():
        match = _EXPERT.match(name)
        if match is None:
            tensors[name] = value
        else:
            prefix, expert, matrix = match.groups()
            experts.setdefault(prefix, {}).setdefault(int(expert), {})[matrix] = value
    for prefix, members in experts.items():
        ordered = [members[expert] for expert in sorted(members)]
        tensors[f"{prefix}.gate_up_proj"] = torch.stack([torch.cat((e["gate_proj"], e["up_proj"])) for e in ordered])
        tensors[f"{prefix}.down_proj"] = torch.stack([e["down_proj"] for e in ordered])
    return tensors


def save_model(
    model: KimiK25,
    folder: Path,
    expert_precision: str = "full",
    dtype: torch.dtype = torch.float32,
    image_config: ImageConfig | None = None,
) -> None:
    """Write everything but the tokenizer's files; arguments as of ``save_weights``."""
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
        expert_precision: the routed experts as they are ("full") or as INT4 (``model.quantization``).
        dtype: of the stored weights: float32, or bfloat16 as the released checkpoint has it.
        image_config: how the model's images are prepared; the released values if not given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors, quantization = unstacked_tensors(weights), None
    if expert_precision == "int4":  # from the weights as they are: rounded to bfloat16 first, they give other levels
        tensors, quantization = packed_experts(tensors), QuantizationConfig()
    tensors = {
        name: value.to(dtype) if value.is_floating_point() and not name.endswith(_CORRECTION_BIAS) else value
        for name, value in tensors.items()
    }
    config = config.model_copy(update={"quantization_config": quantization, "dtype": DTYPES[dtype]})
    config.save(folder / CONFIG)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
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
    """Write a folder that transformers, vLLM and SGLang load as it is; arguments as of ``save_weights``.

    Raises:
        MoonflowError: the model has not the tokenizer's vocabulary.
    """
    config = model.config
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
            "export it with the tokenizer that it was trained with"
        )
    save_model(model, folder, expert_precision, dtype, image_config)
    tokenizer.save(folder)


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


def load_image_config(folder: Path) -> ImageConfig:
    """How a checkpoint's images are prepared.

    Raises:
        MoonflowError: its preprocessor_config.json is missing or wrong, or cuts other patches than config.json says.
    """
    path = folder / PROCESSOR
    try:
        found = as_image_config(read_json(path.read_text())["media_proc_cfg"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise MoonflowError(f"{path} gives no usable media_proc_cfg ({error}); export the checkpoint again") from error
    vision = load_config(folder / "config.json").vision_config
    cut, wanted = (found.patch_size, *2 * (found.merge_kernel_size,)), (vision.patch_size, *vision.merge_kernel_size)
    if cut != wanted:
        raise MoonflowError(
            f"{path} cuts patches of {cut[0]} pixels, {cut[1]} x {cut[2]} to a token, but config.json says "
            f"{wanted[0]}, {wanted[1]} x {wanted[2]}; export the checkpoint again"
        )
    return found


def _files(folder: Path) -> tuple[list[Path], dict[str, Path]]:
    """The files with a checkpoint's weights: one, or by its index shards; and where the index says each tensor is.

    Raises:
        MoonflowError: the index is damaged or names something that is not a file of its folder.
    """
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return [folder / WEIGHTS], {}
    try:
        place = {str(name): str(file) for name, file in read_json(index.read_text())["weight_map"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise MoonflowError(f"{index} is damaged ({error}); fetch the checkpoint again") from error
    for shard in place.values():
        if Path(shard).name != shard:
            raise MoonflowError(f"{index} names {shard!r}, which is not a file of its folder")
    files = {name: folder / shard for name, shard in place.items()}
    return sorted(set(files.values())), files


def _released(found: dict[str, _T], place: Mapping[str, Path]) -> dict[str, _T]:
    """What was found in a checkpoint's files, by its released name; MoonflowError if the index says there is more."""
    for name in sorted(place.keys() - found.keys()):
        raise MoonflowError(f"{place[name]}: tensor {name} is missing; fetch the checkpoint again")
    for pattern, released in _TRANSFORMERS_NAMES:
        found = {pattern.sub(released, name): value for name, value in found.items()}
    return found


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint under their released names, from one file or, by its index, from shards.

    Raises:
        MoonflowError: naming the missing or damaged file, or a tensor that is not where the index says.
    """
    files, place = _files(folder)
    tensors: dict[str, Tensor] = {}
    for path in files:
        tensors |= _read_file(path)
    return unpacked_experts(_released(tensors, place), str(folder))


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of what ``read_tensors`` gives, from the files' headers alone; raises as it does."""
    files, place = _files(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        with _damage_told(path), safe_open(path, framework="pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return unpacked_shapes(_released(shapes, place))


def _read_file(path: Path) -> dict[str, Tensor]:
    with _damage_told(path):
        return load_file(path)


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise MoonflowError(f"no weights at {path}; the folder is not a checkpoint, or its download was cut short")
    try:
        yield
    except SafetensorError as error:
        raise MoonflowError(f"{path} is damaged ({error}); fetch the checkpoint again") from error


def _released_shapes(model: KimiK25) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of ``released_tensors``, one by one: a config may ask for millions of experts."""
    for name, value in model.state_dict().items():
        prefix, _, matrix = name.rpartition(".")
        if not prefix.endswith(".mlp.experts"):
            yield name, tuple(value.shape)
            continue
        experts, rows, columns = value.shape
        for expert in range(experts):
            if matrix == "down_proj":
                yield f"{prefix}.{expert}.down_proj.weight", (rows, columns)
            else:
                yield f"{prefix}.{expert}.gate_proj.weight", (rows // 2, columns)
                yield f"{prefix}.{expert}.up_proj.weight", (rows // 2, columns)


def _check_shapes(model: KimiK25, folder: Path) -> None:
    """MoonflowError unless the weights in a checkpoint folder are this model's; names the first that is not."""
    where, unknown = folder / (WEIGHTS if (folder / WEIGHTS).is_file() else INDEX), read_shapes(folder)
    for name, shape in _released_shapes(model):
        if (found := unknown.pop(name, None)) is None:
            raise MoonflowError(f"{where}: tensor {name} is missing; config.json and weights disagree")
        if found != shape:
            raise MoonflowError(f"{where}: tensor {name} is {list(found)}, config.json asks for {list(shape)}")
    for name in sorted(unknown):
        raise MoonflowError(f"{where}: tensor {name} is unknown; config.json and weights disagree")


class _ShapesAlone(TorchFunctionMode):
    """Modules that are made inside, on the meta device, have weights without memory, and are quick to make.

    Initial weights are not drawn, and the small tables that are computed from counts are in memory: what torch needs
    for either on the meta device takes seconds to import.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"]
        if func is torch.arange:
            kwargs = kwargs | {"device": "cpu"}
        return func(*args, **kwargs)


def load_checked_config(folder: Path) -> ModelConfig:
    """The config of a checkpoint folder, if its weights are of that shape.

    The comparison takes a model without memory for weights and the files' headers. So a config that lies costs nothing,
    and who builds a model from this one needs no more memory than the files' size says.

    Raises:
        MoonflowError: naming the file and the key, or the first tensor, that is wrong.
    """
    config = load_config(folder / CONFIG)
    with torch.device("meta"), _ShapesAlone():
        model = KimiK25(config)
    _check_shapes(model, folder)
    return config


def load_weights(model: KimiK25, folder: Path) -> None:
    """Fill ``model`` from a checkpoint folder, in the dtype that the model has.

    Raises:
        MoonflowError: naming the file and the first missing, unknown or misshapen tensor.
    """
    _check_shapes(model, folder)
    model.load_state_dict(stacked_tensors(read_tensors(folder)))


def quantise_checkpoint(folder: Path) -> None:
    """Make a checkpoint folder an INT4 one in place; memory for one of its files is enough.

    Raises:
        MoonflowError: naming a missing or damaged file, or a tensor that INT4 does not take.
    """
    config = load_config(folder / CONFIG)
    place: dict[str, str] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        tensors = packed_experts(_read_file(path))
        place |= dict.fromkeys(tensors, path.name)
        written = path.with_suffix(".int4")
        save_file(tensors, written, metadata={"format": "pt"})
        written.replace(path)
    if (folder / INDEX).is_file():
        size = sum(path.stat().st_size for path in folder.glob("model*.safetensors"))
        (folder / INDEX).write_text(
            json.dumps({"metadata": {"total_size": size}, "weight_map": place}, indent=2) + "\n"
        )
    config.model_copy(update={"quantization_config": QuantizationConfig()}).save(folder / CONFIG)


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> KimiK25:
    """Build the model that a checkpoint folder describes, with its weights, in evaluation mode.

    Args:
        dtype: of the weights in memory, whatever the files have; the routers' correction biases stay float32.

    Raises:
        MoonflowError: as ``load_checked_config``, before there is memory for the model; a damaged file.
    """
    model = KimiK25(load_checked_config(folder))
    if dtype != torch.float32:
        for name, parameter in model.named_parameters():
            if not name.endswith(_CORRECTION_BIAS):
                parameter.data = parameter.data.to(dtype)
    load_weights(model, folder)
    return model.eval()
