"""Expert parallel training: the ranks of a group share the routed experts, tokens travel to them and back
(source: GShard, arXiv 2006.16668; the order of the steps is ours).

A rank of a group of n holds E/n neighbouring experts. Each token-expert pair is sent to the rank that holds the expert,
with its combine weight; that rank multiplies (``model.network.moe.GroupedExperts``, as in one process) and sends the
weighted row back, where a token's rows are summed. Routing is uneven, so the counts travel first.

The owner of an expert computes every token of the group that chose it, so its gradients are already sums over the
group: only the gradients of the expert's copies in other groups must be added.

Shapes: N tokens, D hidden, E routed experts, K experts per token, S = N * K pairs of this rank sorted by expert,
A pairs that arrived, n ranks, e = E / n experts of a rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from model.network.expert_share import ExpertShare
from model.network.moe import Experts
from model.parallel.exchange import exchange

MATRICES = ("gate_up_proj", "down_proj")


def is_expert(name: str) -> bool:
    """Whether a parameter, or an optimizer's slot of it, is divided among the ranks of an expert group."""
    return ".mlp.experts." in name


class _ToPairs(torch.autograd.Function):
    """Each token once for every expert it chose; the backward gathers and sums, which is faster than a scatter-add."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, token_S: Tensor, row_NK: Tensor) -> Tensor:
        ctx.save_for_backward(row_NK)
        return x_ND.index_select(0, token_S)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (row_NK,) = ctx.saved_tensors
        return F.embedding_bag(row_NK, grads[0], mode="sum"), None, None


class _ToTokens(torch.autograd.Function):
    """The sum of each token's pairs: the transpose of ``_ToPairs``."""

    @staticmethod
    def forward(ctx: Any, y_SD: Tensor, token_S: Tensor, row_NK: Tensor) -> Tensor:
        ctx.save_for_backward(token_S)
        return F.embedding_bag(row_NK, y_SD, mode="sum")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (token_S,) = ctx.saved_tensors
        return grads[0].index_select(0, token_S), None, None


class ExpertGroup:
    """The ranks that share one copy of the routed experts, as seen from one of them.

    Raises:
        MoonflowError: the experts do not divide evenly.
    """

    def __init__(self, group: dist.ProcessGroup, experts: int) -> None:
        self.group, self.rank, self.size = group, dist.get_rank(group), dist.get_world_size(group)
        self.numbers = ExpertShare(self.rank, self.size).of(experts)
        self.experts, self.held = experts, len(self.numbers)

    def __call__(
        self, experts: Callable[[Tensor, Tensor, Tensor], Tensor], x_ND: Tensor, weights_NK: Tensor, chosen_NK: Tensor
    ) -> Tensor:
        """Outputs [N, D] of this rank's tokens.

        Args:
            experts: computes the weighted outputs [A, D] of the experts held here, from tokens [A, D], weights and
                local expert ids (both [A, 1]).
        """
        order_S = chosen_NK.flatten().argsort(stable=True)
        row_NK = torch.empty_like(order_S).scatter_(0, order_S, torch.arange(len(order_S), device=order_S.device))
        row_NK, token_S = row_NK.view_as(chosen_NK), order_S // chosen_NK.shape[1]
        sent_E = chosen_NK.flatten().bincount(minlength=self.experts)
        received_E = torch.empty_like(sent_E)  # rank by rank, the pairs for each expert held here
        dist.all_to_all_single(received_E, sent_E, group=self.group)
        sent, received = (counts.view(self.size, self.held).sum(1).tolist() for counts in (sent_E, received_E))
        x_AD = exchange(_ToPairs.apply(x_ND, token_S, row_NK), sent, received, self.group)
        weights_A = exchange(weights_NK.flatten().index_select(0, order_S), sent, received, self.group)
        expert_E = torch.arange(self.held, device=order_S.device).repeat(self.size)
        expert_A = expert_E.repeat_interleave(received_E, output_size=len(x_AD))
        y_AD = experts(x_AD, weights_A.unsqueeze(1), expert_A.unsqueeze(1))
        return _ToTokens.apply(exchange(y_AD, received, sent, self.group), token_S, row_NK)

    def slice(self, whole_E: Tensor) -> Tensor:
        """This rank's experts of a tensor that is stacked by expert."""
        return whole_E[self.numbers.start : self.numbers.stop]

    def whole(self, own_e: Tensor) -> Tensor:
        """The inverse of ``slice``, on every rank of the group; all of them call it."""
        parts = [torch.empty_like(own_e, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, own_e.contiguous(), group=self.group)
        return torch.cat(parts)


def join_experts(model: nn.Module, group: dist.ProcessGroup) -> None:
    """From now on the group's ranks, each of which was built with its share, run every forward and backward together.

    Raises:
        ValueError: the model was built with other experts than this rank's (``Ranks.expert_share``).
    """
    for module in model.modules():
        if isinstance(module, Experts):
            sharing = ExpertGroup(group, module.count)
            if module.held != sharing.numbers:
                raise ValueError(f"the model has experts {module.held}, this rank's are {sharing.numbers}")
            module.group = sharing


def expert_group(model: nn.Module) -> ExpertGroup | None:
    """How the model's experts are divided, or None where this process holds them all."""
    for module in model.modules():
        if isinstance(module, Experts) and isinstance(module.group, ExpertGroup):
            return module.group
    return None


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The ``state_dict`` with all experts, on every rank of the group; all of them call it."""
    sharing = expert_group(model)
    return {
        name: sharing.whole(value) if sharing is not None and is_expert(name) else value
        for name, value in model.state_dict().items()
    }
