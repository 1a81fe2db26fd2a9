"""KFP interface of zero_vision_sft."""

from kfp import dsl

from components.runtime.kfp.image import PIPELINE
from components.runtime.kfp.interface import described


@dsl.component(base_image=PIPELINE, install_kfp_package=False)
@described("zero_vision_sft")
def zero_vision_sft(
    run_id: str,
    data: dsl.Input[dsl.Dataset],
    parent: dsl.Input[dsl.Model],
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.Markdown],
    mixture: str,
    steps: int,
    learning_rate: float,
    sources: str,
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
    """Fine-tune on text-only trajectories, after which vision follows without an image, and on the user's data."""
    from components.runtime.kfp.entry import enter

    inputs = {"data": data, "parent": parent}
    enter("zero_vision_sft", locals(), inputs=inputs, output=checkpoint, metrics=metrics, card=card)
