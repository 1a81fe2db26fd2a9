"""The cold start of a swarm: text-only SFT on trajectories of the offline world (source: K2.5 section 2.2; data ours).

Nearly all of them are the work of one agent or of a sub-agent; of each kind and size of task that fits into a row, the
same few delegate, in all ways, so that PARL finds the syntax and learns by itself when and how widely to use it. All
arms of a seed start from this checkpoint.
"""

from __future__ import annotations

from components.runtime.checkpoints.manifest import Manifest
from components.runtime.step import StepContext
from components.swarm_start.config import Config
from model.checkpoint.folder import load_parent
from model.data.order.mixtures import mixtures
from model.train.fine_tuning import FineTuning, fine_tune


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    data = context.data(inputs["data"])
    model = load_parent(context.fetch(inputs["parent"]), data.tokenizer)
    tuning = FineTuning(
        config.steps, config.learning_rate, config.tokens_per_row, config.rows, config.seed, config.products,
        micro_batch_tokens=config.micro_batch_tokens, checkpoint_every=config.checkpoint_every,
    )  # fmt: skip
    fine_tune(model, data, mixtures(config.mixture).trajectories, tuning, context, context.ranks)
    return context.checkpoints.newest
