"""A loss whose parts add up: rows divide among ranks, threads and micro-batches, columns among ranks (source: ours).

Both training engines compute any loss in this way: the network's forward on a part of the global batch, a loss function
of its log-probs, and figures of the whole batch from the sums of the parts.

Shapes: N positions with a target of a part; M merged vision tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
import torch.distributed as dist
from torch import Tensor

from model.network.batch import Batch
from model.network.forward_context import ForwardContext
from model.network.multimodal import KimiK25
from model.network.precision import narrow_products
from model.optimizer.optimization import Optimization
from model.parallel.columns import columns
from model.parallel.ranks import Ranks
from model.parallel.sequence_parallel import UlyssesGroup

Figures = dict[str, float]


@dataclass(frozen=True)
class BatchSize:
    """The numbers of rows and targets in the global batch, by which a loss is divided to be a mean."""

    rows: int
    targets: int

    @classmethod
    def of(cls, batch: Batch, ranks: Ranks) -> Self:
        """The size of the global batch, from this rank's rows. Every rank calls it; ranks that share rows give the same
        whole rows."""
        local = torch.tensor([len(batch.input_ids_BT), len(batch.targets_N)], dtype=torch.int64, device=ranks.device)
        rows, targets = ranks.sum_(local).tolist()
        return cls(rows // ranks.layout.sequence_parallel, targets // ranks.layout.sequence_parallel)


@dataclass(frozen=True)
class LossPart:
    """The loss of one part of the global batch, and what its figures need.

    Attributes:
        loss: with gradient; the losses of all parts add up to that of the global batch.
        sums: tensors without gradient, which are added over all parts.
        largest: tensors without gradient, of which the element-wise maximum over all parts is taken.
    """

    loss: Tensor
    sums: tuple[Tensor, ...]
    largest: tuple[Tensor, ...] = ()

    def backward(self) -> LossPart:
        """Add the part's gradient to the parameters' gradients; returns the part without its graph."""
        if self.loss.requires_grad:  # it does not if vision alone learns and the rows have no image
            self.loss.backward()  # type: ignore[no-untyped-call]
        return replace(self, loss=self.loss.detach())


class Loss(Protocol):
    """A loss of packed rows. Both methods depend on their arguments alone: parts are computed in several threads."""

    def __call__(self, logprobs_N: Tensor, balance: Tensor, part: Batch, size: BatchSize) -> LossPart:
        """The loss of one part.

        Args:
            logprobs_N: float32; log-probability of each target, in nats.
            balance: the routers' balance loss, a mean over these rows.
            part: these rows, or this rank's columns of them; ``sample_N`` and ``keys`` are numbered as in the batch
                that was given to ``backward``.
            size: of the global batch.
        """
        ...

    def figures(self, sums: Sequence[Tensor], largest: Sequence[Tensor]) -> Figures:
        """The figures of the global batch, from ``sums`` and ``largest`` of all its parts taken together."""
        ...


def forward_context(optimization: Optimization, ranks: Ranks) -> ForwardContext:
    """The training's precision, and the ranks that share rows with this one."""
    products = narrow_products(ranks.device) if optimization.products == "bfloat16" else None
    sequence = UlyssesGroup(ranks.sequence) if ranks.sequence is not None else None
    return ForwardContext(products, optimization.expert_precision, sequence)


def loss_of_rows(
    model: KimiK25,
    rows: Batch,
    loss: Loss,
    size: BatchSize,
    ranks: Ranks,
    context: ForwardContext,
    features_MD: Tensor | None = None,
) -> LossPart:
    """The loss of some rows.

    Args:
        rows: whole rows; ranks that share rows give the same, and each computes its columns.
        context: as ``forward_context`` makes it.
        features_MD: the media's features, if other ranks encoded them (``model.parallel.decoupled_encoder``).
    """
    if ranks.sequence is not None:
        rows = columns(rows, dist.get_rank(ranks.sequence), ranks.layout.sequence_parallel)
    logprobs_N = model.logprobs(rows, features_MD, context).float()
    return loss(logprobs_N, model.auxiliary_loss(), rows, size)


def figures_of(loss: Loss, parts: Sequence[LossPart], ranks: Ranks) -> Figures:
    """The figures of the global batch, from this rank's parts; every rank calls it."""
    sums = [ranks.sum_(torch.stack(values).sum(0)) for values in zip(*(part.sums for part in parts), strict=True)]
    largest = [ranks.max_(torch.stack(values).amax(0)) for values in zip(*(p.largest for p in parts), strict=True)]
    return loss.figures(sums, largest)
