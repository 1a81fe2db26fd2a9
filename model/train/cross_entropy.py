"""The supervised loss: mean cross-entropy over targets, plus the routers' balance loss (source: K2.5; balance:
DeepSeek-V3).

Shapes: N positions with a target; 4 sums: of all losses, of those of vision, of all targets, of those of vision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.network.batch import Batch
from model.parallel.loss import BatchSize, Figures, LossPart


@dataclass(frozen=True)
class CrossEntropy:
    """A ``model.parallel.loss.Loss``: mean nats per target of the global batch, plus the mean balance loss of its rows.

    Figures: ``loss/total`` (balance loss included), and ``loss/text`` and ``loss/vision`` if there are such targets, in
    nats per target; ``targets/text`` and ``targets/vision``, which are counts.

    Attributes:
        weight: factor of the whole loss; it does not change the figures.
    """

    weight: float = 1.0

    def __call__(self, logprobs_N: Tensor, balance: Tensor, part: Batch, size: BatchSize) -> LossPart:
        losses_N, share = -logprobs_N, len(part.input_ids_BT) / size.rows
        with torch.no_grad():
            of_vision_N = part.vision_N
            counted = [losses_N.sum(), (losses_N * of_vision_N).sum(), losses_N.new_tensor(len(losses_N))]
            counted_4 = torch.stack([*counted, of_vision_N.sum()]).double()
        loss = self.weight * (losses_N.sum() / max(1.0, size.targets) + balance * share)
        return LossPart(loss, (counted_4, balance.detach() * share))

    def figures(self, sums: Sequence[Tensor], largest: Sequence[Tensor] = ()) -> Figures:
        counted_4, balance = sums
        total, vision, targets, vision_targets = counted_4.tolist()
        figures = {"targets/text": targets - vision_targets, "targets/vision": vision_targets}
        if vision_targets:
            figures["loss/vision"] = vision / vision_targets
        if targets > vision_targets:
            figures["loss/text"] = (total - vision) / (targets - vision_targets)
        figures["loss/total"] = total / max(1.0, targets) + float(balance)
        return figures
