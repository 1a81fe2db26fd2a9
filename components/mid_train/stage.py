"""Mid-training: better text, long documents and videos, in a context that grows by YaRN (source: K2.5 Table 3)."""

from __future__ import annotations

from components.mid_train.config import Config
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.step import StepContext
from model.checkpoint.folder import load_parent
from model.data.batches.folder import DataFolder
from model.data.order.mixtures import mixtures
from model.data.order.shares import Mixture, blend
from model.network.yarn import original_window
from model.optimizer.optimization import Optimization
from model.train.loop import train
from model.train.phase import Phase


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    # 1. Data: reasoning and long, high-quality text, and the vision mixture with long videos.
    data = context.data(inputs["data"])

    # 2. Model: in the context that it was pre-trained in.
    model = load_parent(context.fetch(inputs["parent"]), data.tokenizer, context.ranks.expert_share)

    # 3. Train, in rows as long as the context, which grows from phase to phase.
    train(model, phases(config, data, original_window(model)), data.path, context, context.ranks)
    return context.checkpoints.newest


def phases(config: Config, data: DataFolder, seen: int) -> list[Phase]:
    """A phase for each context step after a context of ``seen``; each reads the data in an order of its own.

    The longer the context, the lower the rate: a second extension at the first one's rate wears down what was learned
    in short contexts, such as reading digits.
    """
    return [
        Phase(
            data.mixture(mixture(config, data), tokens_per_row=window, rows=rows, seed=config.seed + 100 * number),
            Optimization(
                steps,
                config.learning_rate * config.factors[0] * seen / window,
                products=config.products,
                micro_batch_tokens=config.micro_batch_tokens,
            ),
            config.checkpoint_every,
            window,
        )
        for number, (window, rows, steps) in enumerate(shapes(config, seen))
    ]


def mixture(config: Config, data: DataFolder) -> Mixture:
    shares = mixtures(config.mixture)
    text, vision = data.with_user_families(shares.long_text, shares.long_vision)
    return blend((text, 1 - config.vision_ratio), (vision, config.vision_ratio))


def shapes(config: Config, seen: int) -> list[tuple[int, int, int]]:
    """(window, rows, steps) of each context step after a context of ``seen``: equal tokens in a step, equal steps."""
    factors = config.factors
    share, rest = divmod(config.steps, len(factors))
    return [
        (round(seen * factor), round(config.rows * factors[-1] / factor), share + (number < rest))
        for number, factor in enumerate(factors)
    ]
