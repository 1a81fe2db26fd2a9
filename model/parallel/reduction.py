"""Gradients, their norm and the optimizer's state where ranks hold the same weights, or experts of their own (ours).

The gradient of an expert is summed over the ranks that hold a copy of it: the other ranks have already sent it their
tokens (``model.parallel.expert_parallel``). Every other gradient is summed over all ranks.

Shapes: E experts of one process, e of a rank.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from model.checkpoint.slices import Slice
from model.network.multimodal import KimiK25
from model.parallel.expert_parallel import ExpertGroup, expert_group, is_expert
from model.parallel.ranks import Ranks


def sum_gradients(model: KimiK25, ranks: Ranks) -> None:
    """Replace each gradient by its sum over the ranks that hold the parameter; a rank without a gradient adds zero.

    A parameter without a gradient on any rank stays without one, as in one process: no decay and no momentum moves it.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    has_gradient = torch.tensor([float(parameter.grad is not None) for _, parameter in trained], device=ranks.device)
    touched = [one for one, some in zip(trained, ranks.max_(has_gradient).tolist(), strict=True) if some]
    divided = ranks.experts is not None
    for experts, group in ((False, ranks.everyone), (True, ranks.expert_copies)):
        _sum([p for name, p in touched if (divided and is_expert(name)) == experts], group)


def _sum(parameters: list[Tensor], group: dist.ProcessGroup | None) -> None:
    if not parameters:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat, group=group)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def gradient_norm(model: KimiK25, ranks: Ranks) -> float:
    """The norm of the gradient that one process would have, after ``sum_gradients``."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if ranks.experts is None:
        return float(torch.nn.utils.get_total_norm(list(gradients.values())))
    of_experts = torch.nn.utils.get_total_norm([g for name, g in gradients.items() if is_expert(name)]).square()
    dist.all_reduce(of_experts, group=ranks.experts)
    rest = torch.nn.utils.get_total_norm([g for name, g in gradients.items() if not is_expert(name)]).square()
    return float((of_experts + rest).sqrt())


def weights_to_write(weights: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """What this rank writes of the weights that it holds: an expert's are written by the first rank that holds it, all
    others by the first rank."""
    held_first = ranks.rank < ranks.layout.expert_parallel
    return {name: value for name, value in weights.items() if ranks.first or (held_first and is_expert(name))}


def state_to_write(state: Mapping[str, Tensor], model: KimiK25, ranks: Ranks) -> dict[str, Tensor | Slice]:
    """The part of its optimizer's state that this rank writes: an expert's state is written by the first rank that
    holds it, all other state by the first rank."""
    sharing = expert_group(model)
    written: dict[str, Tensor | Slice] = {}
    for key, value in state.items():
        if sharing is not None and is_expert(key):
            if ranks.rank < sharing.size:
                written[key] = _slice(key, value, sharing)
        elif ranks.first:
            written[key] = value
    return written


def _slice(key: str, own_e: Tensor, sharing: ExpertGroup) -> Slice:
    shape = (sharing.experts, *own_e.shape[1:])
    return Slice(key, shape, sharing.rank * own_e.numel(), own_e.reshape(-1))


def local_state(tensors: Mapping[str, Tensor], model: KimiK25) -> Mapping[str, Tensor]:
    """This rank's part of the optimizer state that one process would have."""
    sharing = expert_group(model)
    if sharing is None:
        return tensors
    return {key: sharing.slice(value) if is_expert(key) else value for key, value in tensors.items()}
