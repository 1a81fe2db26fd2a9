"""Between our modules and the released checkpoint: config.json + safetensors under the released names
(source: the released checkpoint).

The only difference of names is the routed experts, which we hold stacked: gate_up [E, 2F, D] and down [E, D, F].
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.config import load_config
from model.errors import MoonflowError
from model.multimodal import KimiK25

WEIGHTS = "model.safetensors"
_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight$")


def released_tensors(model: KimiK25) -> dict[str, Tensor]:
    """Every weight under its released name; the experts split, one tensor per expert and matrix."""
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
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
    """The inverse of ``released_tensors``."""
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


def save_model(model: KimiK25, folder: Path) -> None:
    """Write config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save(folder / "config.json")
    save_file(released_tensors(model), folder / WEIGHTS, metadata={"format": "pt"})


def load_weights(model: KimiK25, folder: Path) -> None:
    """Fill ``model`` from a checkpoint folder.

    Raises:
        MoonflowError: naming the file and the first missing, unknown or misshapen tensor.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise MoonflowError(f"no weights at {path}; the folder is not a checkpoint, or its download was cut short")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise MoonflowError(f"{path} is damaged ({error}); fetch the checkpoint again") from error
    own = released_tensors(model)
    for name in sorted(own.keys() ^ tensors.keys()):
        raise MoonflowError(
            f"{path}: tensor {name} is {'missing' if name in own else 'unknown'}; config.json and weights disagree"
        )
    for name, value in tensors.items():
        if value.shape != own[name].shape:
            raise MoonflowError(
                f"{path}: tensor {name} is {list(value.shape)}, config.json asks for {list(own[name].shape)}"
            )
    model.load_state_dict(stacked_tensors(tensors))


def load_model(folder: Path) -> KimiK25:
    """Build the model that a checkpoint folder describes, with its weights, in evaluation mode."""
    model = KimiK25(load_config(folder / "config.json"))
    load_weights(model, folder)
    return model.eval()
