"""Gradients, their norm and the optimizer's state where ranks hold the same weights, or their own experts (ours).

A gradient is summed over the ranks that hold the parameter: over all of them, or, of an expert, over its copies, since
the tokens of the ranks that share it have come to its owner already (``model.expert_parallel``).

Shapes: E experts of one process, e of a rank.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from model.expert_parallel import ExpertGroup, expert_group, is_expert
from model.multimodal import KimiK25
from model.train.ranks import Ranks
from model.train.slices import Slice


def sum_gradients(model: KimiK25, ranks: Ranks) -> None:
    """Each gradient becomes its sum over the ranks that hold it; one whose rows did not touch it adds zero."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    divided = ranks.experts is not None
    for own_experts, group in ((False, ranks.everyone), (True, ranks.expert_copies)):
        _sum([p for name, p in trained if (divided and is_expert(name)) == own_experts], group)


def _sum(parameters: list[Tensor], group: dist.ProcessGroup | None) -> None:
    if not parameters:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat, group=group)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def gradient_norm(model: KimiK25, ranks: Ranks) -> float:
    """Of the gradient of one process, after ``sum_gradients``."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if ranks.experts is None:
        return float(torch.nn.utils.get_total_norm(list(gradients.values())))
    of_experts = torch.nn.utils.get_total_norm([g for name, g in gradients.items() if is_expert(name)]).square()
    dist.all_reduce(of_experts, group=ranks.experts)
    rest = torch.nn.utils.get_total_norm([g for name, g in gradients.items() if not is_expert(name)]).square()
    return float((of_experts + rest).sqrt())


def held_state(state: Mapping[str, Tensor], model: KimiK25, ranks: Ranks) -> dict[str, Tensor | Slice]:
    """What this rank writes of its optimizer's state: the first rank all but the experts', their first owner these."""
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


def own_state(tensors: Mapping[str, Tensor], model: KimiK25) -> Mapping[str, Tensor]:
    """This rank's part of one process's optimizer state."""
    sharing = expert_group(model)
    if sharing is None:
        return tensors
    return {key: sharing.slice(value) if is_expert(key) else value for key, value in tensors.items()}
