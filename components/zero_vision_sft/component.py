"""KFP interface of zero_vision_sft."""

from kfp import dsl

from components.runtime.image import PIPELINE
from components.runtime.interface import described


@dsl.component(base_image=PIPELINE, install_kfp_package=False)
@described("zero_vision_sft")
def zero_vision_sft(
    run_id: str,
    data: dsl.Input[dsl.Dataset],
    parent: dsl.Input[dsl.Model],
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.Markdown],
    steps: int,
    learning_rate: float,
    tokens_per_row: int,
    rows: int,
    products: str,
    expert_precision: str,
    checkpoint_every: int,
    keep_last: int,
    keep_best: str,
    seed: int,
):
    """Fine-tune on text-only trajectories; vision follows without a single image."""
    from components.runtime.entry import enter

    inputs = {"data": data, "parent": parent}
    enter("zero_vision_sft", locals(), inputs=inputs, output=checkpoint, metrics=metrics, card=card)
