"""One batch on several cores of a CPU: each takes some of its rows through a forward and backward of its own (ours).

The other way to use cores, torch's intra-op threads, divides every operator and waits after each. At the sizes that a
CPU trains that is hundreds of waits for little work; here there is one wait a step.

Each core but the first has a replica of the model: its modules once more, with what a forward leaves on them and with
gradients, around the same weights in the same memory. When all are done the gradients are added up in the order of the
rows, so a step's result depends on the number of shares but not on which was first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import accumulate
from typing import Self, TypeVar

import torch
from torch import Tensor, nn

from model.attention import MultiheadLatentAttention
from model.data.packing import Batch
from model.data.rows import media_of_rows, rows_of
from model.moe import Router
from model.multimodal import KimiK25
from model.plan.flops import text_forward
from model.train.decoupled_encoder import encoding_cost

MOST = 4
"""Shares. Each runs its own Python under the one interpreter's lock, a tenth of its time at the tiny shape (ours)."""

LEAST = 2e9
"""FLOP of a share's forward. With less, what it costs to share, and to divide operators, is what it brings (ours)."""

Part = TypeVar("Part")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Instance:
    """A model and what a run leaves something on; to look through its modules for them takes a while."""

    model: KimiK25
    parameters: list[nn.Parameter]
    routers: list[Router]
    attentions: list[MultiheadLatentAttention]

    @classmethod
    def of(cls, model: KimiK25) -> Self:
        return cls(model, list(model.parameters()), list(model.routers()), list(model.attentions()))


class RowShares:
    """Runs work on parts of a batch at once, and adds what it leaves on the model.

    Args:
        count: threads; None: as many as torch has where the model is on a CPU, elsewhere one. Up to ``MOST`` of them
            take a share each, more divide the operators of the shares. One is the model on the calling thread and
            nothing else.
    """

    def __init__(self, model: KimiK25, count: int | None = None) -> None:
        if count is None:
            on_cpu = next(model.parameters()).device.type == "cpu"
            count = torch.get_num_threads() if on_cpu else 1
        self.model, self.count = model, count
        self._alone = count
        self._own = _Instance.of(model)
        self._replicas: list[_Instance] = []
        self._replicated: object = None
        self._pool = (
            ThreadPoolExecutor(min(count, MOST) - 1, "rows") if count > 1 else None
        )  # threads start when they are needed

    def cut(self, batch: Batch) -> list[Batch]:
        """Neighbouring rows together, in at most ``MOST`` parts of about as much work, none of less than ``LEAST`` on
        average; no part is empty."""
        if self.count == 1:
            return [batch]
        costs = row_costs(batch, self.model)
        worth = int(min(self.count, MOST, sum(costs) // LEAST))
        self._alone = self.count if worth > 1 else 1
        bounds = balanced(costs, max(1, worth))
        if len(bounds) == 2:
            return [batch]
        return [rows_of(batch, *part, self.model.config) for part in zip(bounds, bounds[1:], strict=False)]

    def run(self, work: Callable[[KimiK25, Part], Result], parts: Sequence[Part]) -> list[Result]:
        """``work(model, part)`` of every part, at once; what it returns, in the order of the parts.

        ``work`` runs forwards and backwards of the model it is given and touches nothing else. Afterwards the model
        holds the sum of the gradients and loads, and the largest logits. What fails is raised when no part runs any
        more; the first part's error where several do, and the model's gradient is then of no use.

        Several parts divide torch's threads; a single one has them all, or one if there was too little to cut.
        """
        if self.count == 1:
            return [work(self.model, parts[0])]
        replicas = self._blank_replicas(len(parts) - 1) if len(parts) > 1 else []
        before = torch.get_num_threads()
        threads = max(1, self.count // len(parts)) if replicas else min(before, self._alone)

        def one(model: KimiK25, part: Part) -> Result:
            torch.set_num_threads(threads)  # holds for the thread that calls it
            return work(model, part)

        others = []
        if replicas:
            assert self._pool is not None and len(parts) <= min(self.count, MOST)
            models = [replica.model for replica in replicas]
            others = [self._pool.submit(one, *pair) for pair in zip(models, parts[1:], strict=True)]
        try:
            first = one(self.model, parts[0])
        finally:
            wait(others)
            torch.set_num_threads(before)
        results = [first, *(other.result() for other in others)]
        for replica in replicas:
            _add(self._own, replica)
        return results

    def close(self) -> None:
        """End the threads and let the replicas go; ``run`` is of no use for several parts after it."""
        self._replicas = []
        if self._pool is not None:
            self._pool.shutdown()

    def _blank_replicas(self, count: int) -> list[_Instance]:
        """Replicas of the model as it is now, with nothing left on them: made anew only where it is another one."""
        weights = [(id(p), p.data_ptr(), p.shape, p.requires_grad) for p in self.model.parameters()]
        if self._replicated != (self.model.config, weights):
            self._own = _Instance.of(self.model)
            self._replicas, self._replicated = [], (self.model.config, weights)
        while len(self._replicas) < count:
            self._replicas.append(_Instance.of(_replica(self.model)))
        for replica in self._replicas[:count]:
            if replica.model.training != self.model.training:
                replica.model.train(self.model.training)
            for parameter in replica.parameters:
                parameter.grad = None  # of a run that failed
            for router in replica.routers:
                router.load_E.zero_()
        return self._replicas[:count]


@torch.inference_mode(False)  # a replica outlives what it was made for
def _replica(model: KimiK25) -> KimiK25:
    # Tensors that forwards left on modules (the balance loss) belong to graphs and cannot be copied.
    memo = {id(x): x.detach() for module in model.modules() for x in vars(module).values() if isinstance(x, Tensor)}
    memo |= {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)


@torch.no_grad()
def _add(model: _Instance, replica: _Instance) -> None:
    """What the replica's forwards and backwards left there goes to the model."""
    sums, terms = [], []
    for own, other in zip(model.parameters, replica.parameters, strict=True):
        if other.grad is None:  # its rows did not touch the parameter: no image, say
            continue
        if own.grad is None:
            own.grad = other.grad
        else:
            sums.append(own.grad)
            terms.append(other.grad)
        other.grad = None  # its memory is free until the next step
    if sums:
        torch._foreach_add_(sums, terms)
    for router, counted in zip(model.routers, replica.routers, strict=True):
        router.load_E += counted.load_E
    for attention, seen in zip(model.attentions, replica.attentions, strict=True):
        if attention.max_logit_h is not None and seen.max_logit_h is not None:
            attention.max_logit_h = torch.maximum(attention.max_logit_h, seen.max_logit_h)


def row_costs(batch: Batch, model: KimiK25) -> list[float]:
    """FLOP of each row's forward: of all its columns, padding too, and of its media."""
    tokens, config = batch.input_ids_BT.shape[1], model.config
    of_text = tokens * text_forward(config, tokens)
    cost = {grid: encoding_cost(config, grid) for grid in set(batch.grid_thws)}
    return [of_text + sum(cost[grid] for grid in batch.grid_thws[held]) for held in media_of_rows(batch, config)]


def balanced(costs: Sequence[float], shares: int) -> list[int]:
    """Bounds of contiguous parts, each nearest to an equal part of the cost; none is empty, so there may be fewer."""
    shares, until = min(shares, len(costs)), [0, *accumulate(costs)]
    bounds = [0]
    for share in range(1, shares):
        choices = range(bounds[-1] + 1, len(costs) - (shares - share) + 1)
        wanted = until[-1] * share / shares
        bounds.append(min(choices, key=lambda bound: abs(until[bound] - wanted)))
    return [*bounds, len(costs)]
