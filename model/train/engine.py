"""What does one optimizer step: one process, or several that average their gradients (source: ours).

``Engine`` is all that the loop knows of it. ``PlainEngine`` is PyTorch alone; DeepSpeed's ZeRO stages are in
``model.train.zero``.

Shapes: N positions with a target, M merged vision tokens, D hidden; four sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import torch
import torch.distributed as dist
from torch import Tensor

from model.data.columns import columns
from model.data.packing import Batch
from model.expert_parallel import divide_experts, gather_experts, whole_state
from model.multimodal import KimiK25
from model.precision import products_in
from model.quantization import experts_in
from model.sequence_parallel import sequence_shared_by
from model.train.decoupled_encoder import DecoupledEncoder
from model.train.optimizer import build_optimizer, qk_clip
from model.train.phase import Phase
from model.train.ranks import Ranks
from model.train.reduction import gradient_norm, held_state, own_state, sum_gradients
from model.train.shares import RowShares
from model.train.slices import Slice

Figures = dict[str, float]


class Engine(Protocol):
    """One model, one optimizer, one phase. Every rank calls the same methods in the same order."""

    def backward(self, batch: Batch) -> Figures:
        """Make the gradient of the mean loss over the *global* batch; its figures are the global batch's too.

        ``loss/total`` in nats a target (balance loss included), ``loss/text`` and ``loss/vision`` where there are such
        targets, ``targets/text`` and ``targets/vision``, ``gradient_norm``.
        """
        ...

    def update(self, step: int) -> Figures:
        """MuonClip at the rate of ``step``, QK-clip, router bias; forgets the gradient."""
        ...

    def discard(self) -> None:
        """Forget the gradient and what the routers counted, as if ``backward`` had not been called."""
        ...

    def named_state(self) -> Mapping[str, Tensor | Slice]:
        """The optimizer's state, ``<parameter name>/<slot>``: what this rank holds of it, and writes."""
        ...

    def load_named_state(self, tensors: Mapping[str, Tensor]) -> None: ...

    def weights(self) -> Mapping[str, Tensor]:
        """The model's ``state_dict``, whole, on every rank."""
        ...

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of a whole ``state_dict``; the optimizer's state stays."""
        ...

    def close(self) -> None:
        """Give the model back, whole on every rank. The engine is of no use after it."""
        ...


@dataclass(frozen=True)
class RowLosses:
    """What one forward says of some rows.

    Attributes:
        nats: the sum over their targets, with gradient.
        balance: the mean of their balance losses, with gradient.
        counted_4: float64; nats of all targets and of those beside an image, number of all and of those.
    """

    nats: Tensor
    balance: Tensor
    counted_4: Tensor

    @classmethod
    def of(cls, model: KimiK25, batch: Batch, features_MD: Tensor | None = None) -> Self:
        losses_N = -model.logprobs(batch, features_MD).float()
        with torch.no_grad():
            of_vision_N = batch.vision_N
            counted = [losses_N.sum(), (losses_N * of_vision_N).sum(), losses_N.new_tensor(len(losses_N))]
            counted_4 = torch.stack([*counted, of_vision_N.sum()]).double()
        return cls(losses_N.sum(), model.auxiliary_loss(), counted_4)

    def loss(self, targets: float, share: float) -> Tensor:
        """Their part of the loss of a batch with so many ``targets``, of whose rows they are this ``share``: the mean
        cross-entropy over targets, plus the mean balance loss over rows."""
        return self.nats / max(1.0, targets) + self.balance * share


def _figures(counted_4: Tensor, balance: Tensor) -> Figures:
    """Of a whole batch: ``RowLosses.counted_4``, summed over all of its rows, and its balance loss."""
    total, vision, targets, vision_targets = counted_4.tolist()
    figures = {"targets/text": targets - vision_targets, "targets/vision": vision_targets}
    if vision_targets:
        figures["loss/vision"] = vision / vision_targets
    if targets > vision_targets:
        figures["loss/text"] = (total - vision) / (targets - vision_targets)
    figures["loss/total"] = total / max(1.0, targets) + float(balance)
    return figures


def batch_loss(
    model: KimiK25, batch: Batch, ranks: Ranks | None = None, features_MD: Tensor | None = None
) -> tuple[Tensor, Figures]:
    """This rank's share of the mean cross-entropy over the global batch's targets, plus the balance loss.

    The sum of the shares over the ranks is the loss of one process on the global batch; the figures are that sum's.
    Ranks that share rows are given whole ones, the same.
    ``features_MD``: the media's, where another encoded them (``model.train.decoupled_encoder``).
    """
    ranks = ranks or Ranks()
    if ranks.sequence is not None:
        batch = columns(batch, dist.get_rank(ranks.sequence), ranks.layout.sequence_parallel)
    with sequence_shared_by(ranks.sequence):
        losses = RowLosses.of(model, batch, features_MD)
    counted_4, share = ranks.sum_(losses.counted_4), 1 / ranks.data_ranks
    balance = ranks.sum_(losses.balance.detach() * share)
    return losses.loss(float(counted_4[2]), share), _figures(counted_4, balance)


def add_gradient(shares: RowShares, batch: Batch, weight: float = 1.0) -> Figures:
    """Add ``weight`` times the gradient of one process's ``batch_loss``, by shares of the rows; the batch's figures."""
    targets, rows = len(batch.targets_N), len(batch.input_ids_BT)

    def backward(model: KimiK25, part: Batch) -> tuple[Tensor, Tensor]:
        losses, share = RowLosses.of(model, part), len(part.input_ids_BT) / rows
        loss = weight * losses.loss(targets, share)
        if loss.requires_grad:  # rows without an image depend on nothing that learns where vision alone does
            loss.backward()  # type: ignore[no-untyped-call]
        return losses.counted_4, losses.balance.detach() * share

    counted, balances = zip(*shares.run(backward, shares.cut(batch)), strict=True)
    return _figures(torch.stack(counted).sum(0), torch.stack(balances).sum())


class PlainEngine:
    """Every rank holds the whole model and optimizer, or its own experts of them; gradients are summed over the ranks.

    Where the layout divides the experts, the model holds this rank's own until ``close`` (``model.expert_parallel``).
    One process on a CPU divides each batch among the threads that torch has when the engine is made
    (``model.train.shares``); with one thread, or several ranks, it does not.
    """

    def __init__(self, model: KimiK25, phase: Phase, ranks: Ranks | None = None) -> None:
        self.model, self.phase, self.ranks = model, phase, ranks or Ranks()
        if self.ranks.experts is not None:
            divide_experts(model, self.ranks.experts)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(phase.learns(name))
        self.optimizer = build_optimizer(model, phase.learning_rate, weight_decay=phase.weight_decay)
        self.encoder = DecoupledEncoder(model, self.ranks)
        self.shares = RowShares(model, None if self.ranks.world == 1 else 1)

    def backward(self, batch: Batch) -> Figures:
        products = torch.bfloat16 if self.phase.products == "bfloat16" else None
        with products_in(products), experts_in(self.phase.expert_precision):
            figures = self._backward_on_ranks(batch) if self.ranks.world > 1 else add_gradient(self.shares, batch)
        return figures | {"gradient_norm": gradient_norm(self.model, self.ranks)}

    def _backward_on_ranks(self, batch: Batch) -> Figures:
        features_MD = self.encoder.forward(batch)
        loss, figures = batch_loss(self.model, batch, self.ranks, features_MD)
        loss.backward()  # type: ignore[no-untyped-call]
        self.encoder.backward()
        sum_gradients(self.model, self.ranks)
        return figures

    def update(self, step: int) -> Figures:
        self.optimizer.set_learning_rate(self.phase.rate(step))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        figures = {"learning_rate": self.phase.rate(step), "qk_clip/heads": 0.0}
        if self.phase.learns_attention:
            for attention in self.model.attentions():
                if attention.max_logit_h is not None:
                    self.ranks.max_(attention.max_logit_h)
            figures["qk_clip/heads"] = float(qk_clip(self.model.attentions()))
        for router in self.model.routers():
            self.ranks.sum_(router.load_E)
            router.update_bias(self.phase.bias_update_rate if self.phase.learns_routing else 0.0)
        return figures

    def step(self, batch: Batch, number: int) -> Figures:
        """One whole optimizer step, for those who want no judgement in between."""
        return self.backward(batch) | self.update(number)

    def discard(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        for router in self.model.routers():
            router.load_E.zero_()

    def named_state(self) -> Mapping[str, Tensor | Slice]:
        return held_state(self.optimizer.named_state(), self.model, self.ranks)

    def load_named_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.optimizer.load_named_state(own_state(tensors, self.model))

    def weights(self) -> Mapping[str, Tensor]:
        return whole_state(self.model)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(dict(weights))

    def close(self) -> None:
        self.shares.close()
        gather_experts(self.model)


def open_engine(model: KimiK25, phase: Phase, ranks: Ranks) -> Engine:
    """The engine that the ranks' layout asks for, with a fresh optimizer."""
    if ranks.world > 1 and ranks.layout.zero_stage > 0:
        from model.train.zero import ZeroEngine  # and DeepSpeed with it, which one process does not need

        return ZeroEngine(model, phase, ranks)
    return PlainEngine(model, phase, ranks)
