"""KFP interface of rejection_sft."""

from kfp import dsl

from components.runtime.kfp.image import PIPELINE
from components.runtime.kfp.interface import described


@dsl.component(base_image=PIPELINE, install_kfp_package=False)
@described("rejection_sft")
def rejection_sft(
    run_id: str,
    data: dsl.Input[dsl.Dataset],
    parent: dsl.Input[dsl.Model],
    successes: dsl.Input[dsl.Model],
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.Markdown],
    mixture: str,
    steps: int,
    learning_rate: float,
    share: float,
    tokens_per_row: int,
    rows: int,
    products: str,
    expert_precision: str,
    checkpoint_every: int,
    keep_last: int,
    keep_best: str,
    micro_batch_tokens: int,
    seed: int,
):
    """Fine-tune on the successful episodes that visual_rl kept, mixed with text-only trajectories.

    Only the tokens that the policy sampled are learned. If there is no success that fits into a row, the checkpoint is
    passed on as it is, with a warning.
    """
    from components.runtime.kfp.entry import enter

    inputs = {"data": data, "parent": parent, "successes": successes}
    enter("rejection_sft", locals(), inputs=inputs, output=checkpoint, metrics=metrics, card=card)
