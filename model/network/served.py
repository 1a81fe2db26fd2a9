"""The model that acts while it is still being trained: as its INT4 export will, or as it was when it was published
(source: ours)."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from model.network.construction import build_on_meta
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


class PublishedCopy:
    """A model with memory of its own, which gets the values of another one whenever that is published: what samples
    from it does not see the other one change. It takes the memory of one set of weights."""

    def __init__(self) -> None:
        self._copy: KimiK25 | None = None

    @torch.no_grad()
    def of(self, model: KimiK25) -> KimiK25:
        """The copy with the values that ``model`` has now, in evaluation mode; it is the same object each time."""
        state = model.state_dict()
        if self._copy is None:
            self._copy = build_on_meta(model.config)
            self._copy.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)
            self._copy.to(next(model.parameters()).device).requires_grad_(False).eval()
        else:
            for name, value in self._copy.state_dict().items():
                value.copy_(state[name])
        return self._copy


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    for values in (vars(module), module._parameters, module._buffers):
        yield from (value for value in values.values() if isinstance(value, Tensor))
