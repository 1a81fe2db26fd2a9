"""KFP interface of joint_pretrain."""

from kfp import dsl

from components.runtime.kfp.image import PIPELINE
from components.runtime.kfp.interface import described


@dsl.component(base_image=PIPELINE, install_kfp_package=False)
@described("joint_pretrain")
def joint_pretrain(
    run_id: str,
    data: dsl.Input[dsl.Dataset],
    parent: dsl.Input[dsl.Model],
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.Markdown],
    mixture: str,
    steps: int,
    vision_ratio: float,
    vision_start: float,
    learning_rate: float,
    tokens_per_row: int,
    rows: int,
    products: str,
    checkpoint_every: int,
    keep_last: int,
    keep_best: str,
    micro_batch_tokens: int,
    seed: int,
):
    """Train text and vision together at a constant, low share of vision tokens."""
    from components.runtime.kfp.entry import enter

    inputs = {"data": data, "parent": parent}
    enter("joint_pretrain", locals(), inputs=inputs, output=checkpoint, metrics=metrics, card=card)
