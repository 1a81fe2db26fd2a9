"""KFP interface of swarm_start."""

from kfp import dsl

from components.runtime.kfp.image import PIPELINE
from components.runtime.kfp.interface import described


@dsl.component(base_image=PIPELINE, install_kfp_package=False)
@described("swarm_start")
def swarm_start(
    run_id: str,
    cell: str,
    data: dsl.Input[dsl.Dataset],
    parent: dsl.Input[dsl.Model],
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.Markdown],
    mixture: str,
    steps: int,
    learning_rate: float,
    tokens_per_row: int,
    rows: int,
    products: str,
    checkpoint_every: int,
    keep_last: int,
    keep_best: str,
    micro_batch_tokens: int,
):
    """Fine-tune a checkpoint on text-only trajectories of the offline world: the cold start of the swarm ablation.

    `cell` is the seed, for example `0`; the arms of the ablation that start from this checkpoint have it too.
    """
    from components.runtime.kfp.entry import enter

    arguments, inputs = {**locals(), "seed": int(cell)}, {"data": data, "parent": parent}
    enter("swarm_start", arguments, inputs=inputs, output=checkpoint, metrics=metrics, card=card)
