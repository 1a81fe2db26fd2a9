"""The model that an INT4 export will serve, while it is still being trained (source: ours)."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from model.network.multimodal import KimiK25
from model.network.quantization import fake_quantise


@torch.no_grad()
def as_served(model: KimiK25, precision: str) -> KimiK25:
    """The model as its INT4 export will compute, in evaluation mode; ``model`` itself for "full".

    It shares every tensor with ``model`` except the routed experts' weights, which are quantised from their present
    values: make a new one after each training step.
    """
    if precision == "full":
        return model
    # Tensors that forwards left on modules (the balance loss) belong to graphs and cannot be copied: shared as well.
    shared = {id(tensor): tensor for module in model.modules() for tensor in _tensors_of(module)}
    for name, parameter in model.named_parameters():
        if ".mlp.experts." in name:
            shared[id(parameter)] = nn.Parameter(fake_quantise(parameter), requires_grad=False)
    return copy.deepcopy(model, shared).eval()


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    for values in (vars(module), module._parameters, module._buffers):
        yield from (value for value in values.values() if isinstance(value, Tensor))
