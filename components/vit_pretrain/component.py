"""KFP interface of vit_pretrain."""

from kfp import dsl

from components.runtime.kfp.image import PIPELINE
from components.runtime.kfp.interface import described


@dsl.component(base_image=PIPELINE, install_kfp_package=False)
@described("vit_pretrain")
def vit_pretrain(
    run_id: str,
    data: dsl.Input[dsl.Dataset],
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.Markdown],
    preset: str,
    mixture: str,
    steps: int,
    projector_steps: int,
    text_ratio: float,
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
    """Pre-train the vision tower by captioning, then the projector alone."""
    from components.runtime.kfp.entry import enter

    enter("vit_pretrain", locals(), inputs={"data": data}, output=checkpoint, metrics=metrics, card=card)
