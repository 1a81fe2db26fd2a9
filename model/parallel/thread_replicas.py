"""One batch on several cores of a CPU: each runs the forward and backward of a part of its rows (source: ours).

The other way to use cores, torch's intra-op threads, divides every operator and waits after each. At the sizes that a
CPU trains, that is hundreds of waits for little work; here there is one wait per step.

Each thread but the first has a replica of the model: copies of its modules, with gradients and forward results of their
own, but with the same weights in the same memory. At the end the gradients are added in the order of the rows, so a
step's result depends on the number of parts, but not on which of them was finished first.

Shapes: B rows, T tokens in a row, H heads, E experts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

import torch
from torch import Tensor, nn

from model.network.attention import MultiheadLatentAttention
from model.network.batch import Batch
from model.network.moe import Router
from model.network.multimodal import KimiK25
from model.network.row_threads import Part, Result, RowThreads
from model.parallel.decoupled_encoder import encoding_cost
from model.parallel.rows import media_of_rows, rows_of
from model.plan.flops import text_forward

MOST = 4
"""Most parts at a time. A part holds Python's lock for a tenth of its time at the tiny shape (ours)."""

LEAST = 2e9
"""FLOP of a part's forward. With less, dividing a batch, or its operators, costs as much as it saves (ours)."""


@dataclass(frozen=True)
class _Instance:
    """A model and the parts of it on which a run leaves results, listed because a search for them takes a while."""

    model: KimiK25
    parameters: list[nn.Parameter]
    routers: list[Router]
    attentions: list[MultiheadLatentAttention]

    @classmethod
    def of(cls, model: KimiK25) -> Self:
        return cls(model, list(model.parameters()), list(model.routers()), list(model.attentions()))


class ThreadReplicas:
    """Runs work on the parts of a batch at the same time, and adds up the gradients and counts that it leaves.

    Args:
        count: threads; None: as many as torch has if the model is on a CPU, else one. Up to ``MOST`` of them take a
            part each; further threads divide the operators of these parts. With one thread there are no replicas: the
            model runs on the calling thread.
    """

    def __init__(self, model: KimiK25, count: int | None = None) -> None:
        if count is None:
            on_cpu = next(model.parameters()).device.type == "cpu"
            count = torch.get_num_threads() if on_cpu else 1
        self.model, self.count = model, count
        self._alone = count
        self._original = _Instance.of(model)
        self._replicas: list[_Instance] = []
        self._replicated: object = None
        self._pool = RowThreads(min(count, MOST))

    def split(self, batch: Batch) -> list[Batch]:
        """Parts of neighbouring rows: at most ``MOST``, of about equal work, on average at least ``LEAST``
        each; none is empty."""
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
        """Run ``work(model, part)`` for every part at the same time; returns the results in the order of the parts.

        ``work`` runs forwards and backwards of the model that it is given and changes nothing else. Afterwards the
        model holds the sum of the gradients and loads, and the largest logits. If parts raise, the error of the first
        of them is raised after all have ended; the model's gradient is then of no use.

        Several parts divide torch's threads; a single part has all of them, or one if there was too little to split.
        """
        if self.count == 1:
            return [work(self.model, parts[0])]
        replicas = self._blank_replicas(len(parts) - 1) if len(parts) > 1 else []
        before = torch.get_num_threads()
        threads = max(1, self.count // len(parts)) if replicas else min(before, self._alone)

        def one(pair: tuple[KimiK25, Part]) -> Result:
            torch.set_num_threads(threads)  # holds for the thread that calls it
            return work(*pair)

        models = [self.model, *(replica.model for replica in replicas)]
        try:
            results = self._pool.map(one, list(zip(models, parts, strict=True)))
        finally:
            torch.set_num_threads(before)
        for replica in replicas:
            _add(self._original, replica)
        return results

    def close(self) -> None:
        """End the threads and drop the replicas; after it ``run`` takes a single part only."""
        self._replicas = []
        self._pool.close()

    def _blank_replicas(self, count: int) -> list[_Instance]:
        """Replicas of the model without gradients and loads; new ones only if its config or weights were replaced."""
        weights = [(id(p), p.data_ptr(), p.shape, p.requires_grad) for p in self.model.parameters()]
        if self._replicated != (self.model.config, weights):
            self._original = _Instance.of(self.model)
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
    """Add what forwards and backwards left on the replica to the model."""
    sums, terms = [], []
    for one, other in zip(model.parameters, replica.parameters, strict=True):
        if other.grad is None:  # its rows did not use the parameter: no image, say
            continue
        if one.grad is None:
            one.grad = other.grad
        else:
            sums.append(one.grad)
            terms.append(other.grad)
        other.grad = None  # its memory is free until the next step
    if sums:
        torch._foreach_add_(sums, terms)
    for router, counted in zip(model.routers, replica.routers, strict=True):
        router.load_E += counted.load_E
    for attention, seen in zip(model.attentions, replica.attentions, strict=True):
        if attention.max_logit_H is not None and seen.max_logit_H is not None:
            attention.max_logit_H = torch.maximum(attention.max_logit_H, seen.max_logit_H)


def row_costs(batch: Batch, model: KimiK25) -> list[float]:
    """FLOP of each row's forward: of all its columns, padding too, and of its media."""
    tokens, config = batch.input_ids_BT.shape[1], model.config
    text = tokens * text_forward(config, tokens)
    cost = {grid: encoding_cost(config, grid) for grid in set(batch.grid_thws)}
    return [text + sum(cost[grid] for grid in batch.grid_thws[held]) for held in media_of_rows(batch, config)]


def balanced(costs: Sequence[float], parts: int) -> list[int]:
    """Bounds of contiguous parts, each nearest to an equal part of the cost; none is empty, so there may be fewer."""
    parts, until = min(parts, len(costs)), [0, *accumulate(costs)]
    bounds = [0]
    for part in range(1, parts):
        choices = range(bounds[-1] + 1, len(costs) - (parts - part) + 1)
        wanted = until[-1] * part / parts
        bounds.append(min(choices, key=lambda bound: abs(until[bound] - wanted)))
    return [*bounds, len(costs)]
