"""Rows that change ranks, and their gradients that come back (source: ours).

Shapes: S rows sent, in order of the rank they go to; A rows that arrive, in order of the rank they come from; X
whatever a row is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def _all_to_all(rows_SX: Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    rows_AX = rows_SX.new_empty(sum(received), *rows_SX.shape[1:])
    dist.all_to_all_single(rows_AX, rows_SX.contiguous(), list(received), list(sent), group=group)
    return rows_AX


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows_SX: Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _all_to_all(rows_SX, sent, received, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _all_to_all(grads[0], ctx.received, ctx.sent, ctx.group), None, None, None


def exchange(rows_SX: Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """The rows [A, X] that the group's ranks sent here.

    Every rank of the group calls it, and its backward, equally often and in the same order. So the rows require a
    gradient even if nothing that they depend on learns on this rank: another rank may wait for it.

    Args:
        sent: how many rows go to each rank; they lie in that order.
        received: how many rows come from each rank.
    """
    if torch.is_grad_enabled() and not rows_SX.requires_grad:
        rows_SX = rows_SX.detach().requires_grad_()
    return _Exchange.apply(rows_SX, sent, received, group)
