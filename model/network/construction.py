"""A network before it has weights: built on the meta device, then given memory, which the caller fills.

Weights are either drawn from a seed (``model.network.initial``) or read from a checkpoint (``model.checkpoint.load``);
neither should pay for the random weights that torch's modules draw when they are constructed. Nor should a rank pay for
the experts that other ranks hold: they are left out before there is memory for any.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from model.network.config import ModelConfig
from model.network.expert_share import ALL_EXPERTS, ExpertShare
from model.network.multimodal import KimiK25


def build_on_meta(config: ModelConfig, share: ExpertShare = ALL_EXPERTS) -> KimiK25:
    """The network with its parameters on the meta device: shapes without memory, whatever size ``config`` asks for.

    What is computed from the config alone (rotary frequencies, the time table, counters, the routers' biases) is in
    memory, with its values.

    Args:
        share: which of the routed experts it has.

    Raises:
        MoonflowError: the experts do not divide evenly.
    """
    with _EmptyOnMeta():
        model = KimiK25(config)
    for experts in model.experts():
        experts.hold(share)
    return model


def allocate(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Replace the parameters that are on the meta device by memory of ``dtype`` with arbitrary contents, in place."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                empty = torch.empty(parameter.shape, dtype=dtype)
                setattr(module, name, nn.Parameter(empty, requires_grad=parameter.requires_grad))


class _EmptyOnMeta(TorchFunctionMode):
    """Inside, ``torch.empty`` makes tensors on the meta device and ``torch.nn.init`` does nothing.

    Modules take the memory of their parameters from ``torch.empty``, and that of computed tables from other functions.
    ``torch.device("meta")`` would put the tables there too, and what torch needs to draw weights on the meta device
    takes seconds to import.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"]
        if func is torch.empty:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)
