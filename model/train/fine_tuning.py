"""Supervised fine-tuning on a mixture of conversations, for the step ``zero_vision_sft`` and its ablation (ours)."""

from __future__ import annotations

from dataclasses import dataclass

from model.data.batches.folder import DataFolder
from model.data.order.shares import Mixture
from model.network.multimodal import KimiK25
from model.optimizer.optimization import Optimization
from model.parallel.ranks import Ranks
from model.train.loop import train
from model.train.phase import Phase
from model.train.protocol import StepServices


@dataclass(frozen=True)
class FineTuning:
    """How a model is fine-tuned; what a field means stands in ``Optimization`` and ``Phase``.

    Attributes:
        tokens_per_row: sequence length in tokens.
        rows: sequences per optimizer step.
        seed: of the data order.
    """

    steps: int
    learning_rate: float
    tokens_per_row: int
    rows: int
    seed: int
    products: str
    expert_precision: str = "full"
    micro_batch_tokens: int = 0
    checkpoint_every: int = 0


def fine_tune(
    model: KimiK25,
    data: DataFolder,
    mixture: Mixture,
    tuning: FineTuning,
    services: StepServices,
    ranks: Ranks | None = None,
) -> None:
    """Train ``model`` in place. The loss covers the assistant's turns only; without images in the mixture, the vision
    tower and the projector get no gradient.

    Args:
        mixture: family -> its share of the tokens.

    Raises:
        MoonflowError: the data has no train shards of a family; and as ``model.train.loop.train``.
    """
    stream = data.mixture(mixture, tokens_per_row=tuning.tokens_per_row, rows=tuning.rows, seed=tuning.seed)
    optimization = Optimization(
        tuning.steps, tuning.learning_rate, products=tuning.products, expert_precision=tuning.expert_precision,
        micro_batch_tokens=tuning.micro_batch_tokens,
    )  # fmt: skip
    train(model, [Phase(stream, optimization, tuning.checkpoint_every)], data.path, services, ranks)
