"""The engine of an optimizer step, in one process or in several that add up their gradients (source: ours).

The supervised loop and the RL loop know only the protocol ``TrainingEngine``. ``PlainEngine`` is PyTorch alone;
DeepSpeed's ZeRO stages are in ``model.parallel.zero``.

Shapes: M merged vision tokens, D hidden, H heads, E experts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from model.checkpoint.slices import Slice
from model.network.batch import Batch
from model.network.multimodal import KimiK25
from model.network.precision import narrow_products
from model.optimizer.muon_clip import LargestLogits, build_optimizer, qk_clip
from model.optimizer.optimization import Optimization
from model.parallel.decoupled_encoder import DecoupledEncoder
from model.parallel.expert_parallel import join_experts, whole_state
from model.parallel.loss import BatchSize, Figures, Loss, LossPart, figures_of, forward_context, loss_of_rows
from model.parallel.ranks import Ranks
from model.parallel.reduction import gradient_norm, local_state, state_to_write, sum_gradients, weights_to_write
from model.parallel.rows import micro_batches
from model.parallel.thread_replicas import ThreadReplicas

log = logging.getLogger(__name__)


class TrainingEngine(Protocol):
    """One model, one optimizer. Every rank calls the same methods in the same order."""

    def backward(self, batch: Batch, loss: Loss, *, last: bool = True) -> Figures:
        """Add the gradient of the *global* batch's loss to the step's, micro-batch by micro-batch.

        Args:
            batch: this rank's rows; every rank has equally many, of one length.
            last: whether the step's gradient is complete after this call.

        Returns:
            The loss's figures of the global batch, the same on every rank; with ``last`` also ``gradient_norm``, of the
            step's whole gradient.
        """
        ...

    def update(self, step: int) -> Figures:
        """MuonClip at the rate of ``step``, QK-clip, router bias; forgets the gradient."""
        ...

    def discard(self) -> None:
        """Forget the gradient and what the routers counted, as if ``backward`` had not been called."""
        ...

    def named_state(self) -> Mapping[str, Tensor | Slice]:
        """The part of the optimizer's state that this rank writes, by ``<parameter name>/<slot>``."""
        ...

    def load_named_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Load this rank's part of a state that any number of ranks wrote."""
        ...

    def weights(self) -> Mapping[str, Tensor]:
        """The model's ``state_dict``, whole, on every rank."""
        ...

    def written_weights(self) -> Mapping[str, Tensor]:
        """The part of the ``state_dict`` that this rank writes into a checkpoint: no rank holds others' experts."""
        ...

    def close(self) -> None:
        """Give the model back, whole but for the experts of other ranks; the engine cannot be used any more."""
        ...


class PlainEngine:
    """Every rank holds the whole model and optimizer, or its own experts of them; gradients are summed over the ranks.

    Where the layout divides the experts, the model was built with this rank's own (``Ranks.expert_share``). One process
    on a CPU divides each micro-batch among the threads that torch has when the engine is made
    (``model.parallel.thread_replicas``); with one thread, or several ranks, it does not.
    """

    def __init__(self, model: KimiK25, optimization: Optimization, ranks: Ranks | None = None) -> None:
        self.model, self.optimization, self.ranks = model, optimization, ranks or Ranks()
        if self.ranks.experts is not None:
            join_experts(model, self.ranks.experts)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(optimization.learns(name))
        self.optimizer = build_optimizer(model, optimization.learning_rate, weight_decay=optimization.weight_decay)
        self.encoder = DecoupledEncoder(model, self.ranks)
        self.replicas = ThreadReplicas(model, None if self.ranks.world == 1 else 1)
        self.logits = LargestLogits(model.attentions())

    def backward(self, batch: Batch, loss: Loss, *, last: bool = True) -> Figures:
        size, parts = BatchSize.of(batch, self.ranks), []
        for rows in micro_batches(batch, self.optimization.micro_batch_tokens, self.model.config):
            parts += self._add_gradient(rows, loss, size)
            self.logits.add()
        figures = figures_of(loss, parts, self.ranks)
        if last:
            if self.ranks.world > 1:
                sum_gradients(self.model, self.ranks)
            figures["gradient_norm"] = gradient_norm(self.model, self.ranks)
        return figures

    def _add_gradient(self, rows: Batch, loss: Loss, size: BatchSize) -> list[LossPart]:
        def backward(model: KimiK25, part: Batch) -> LossPart:
            return loss_of_rows(model, part, loss, size, self.ranks, context, features_MD).backward()

        context = forward_context(self.optimization, self.ranks)
        features_MD = self.encoder.forward(rows, context.products)  # None in one process, whose threads encode
        parts = self.replicas.run(backward, self.replicas.split(rows))
        self.encoder.backward()
        return parts

    def update(self, step: int) -> Figures:
        rate = self.optimization.rate(step)
        self.optimizer.set_learning_rate(rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        figures = {"learning_rate": rate, "qk_clip/heads": 0.0}
        if self.optimization.learns_attention:
            for attention in self.model.attentions():
                if attention.max_logit_H is not None:
                    self.ranks.max_(attention.max_logit_H)
            figures["qk_clip/heads"] = float(qk_clip(self.model.attentions()))
        self.logits.forget()
        for router in self.model.routers():
            self.ranks.sum_(router.load_E)
            router.update_bias(self.optimization.bias_update_rate if self.optimization.learns_routing else 0.0)
        return figures

    def discard(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.logits.forget()
        for router in self.model.routers():
            router.load_E.zero_()

    def named_state(self) -> Mapping[str, Tensor | Slice]:
        return state_to_write(self.optimizer.named_state(), self.model, self.ranks)

    def load_named_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.optimizer.load_named_state(local_state(tensors, self.model))

    def weights(self) -> Mapping[str, Tensor]:
        return whole_state(self.model)

    def written_weights(self) -> Mapping[str, Tensor]:
        return weights_to_write(self.model.state_dict(), self.ranks)

    def close(self) -> None:
        self.replicas.close()


def open_engine(model: KimiK25, optimization: Optimization, ranks: Ranks) -> TrainingEngine:
    """The engine that the ranks' layout asks for, with a fresh optimizer."""
    if optimization.products == "bfloat16":
        log.info("matrix products are %s", narrow_products(ranks.device))
    if ranks.world > 1 and ranks.layout.zero_stage > 0:
        from model.parallel.zero import ZeroEngine  # and DeepSpeed with it, which one process does not need

        return ZeroEngine(model, optimization, ranks)
    return PlainEngine(model, optimization, ranks)
