"""KFP interface of mid_train."""

from kfp import dsl

from components.runtime.kfp.image import PIPELINE
from components.runtime.kfp.interface import described


@dsl.component(base_image=PIPELINE, install_kfp_package=False)
@described("mid_train")
def mid_train(
    run_id: str,
    data: dsl.Input[dsl.Dataset],
    parent: dsl.Input[dsl.Model],
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.Markdown],
    mixture: str,
    steps: int,
    context_steps: str,
    vision_ratio: float,
    learning_rate: float,
    rows: int,
    products: str,
    checkpoint_every: int,
    keep_last: int,
    keep_best: str,
    micro_batch_tokens: int,
    seed: int,
):
    """Train on longer and longer sequences: the context grows by YaRN, in steps."""
    from components.runtime.kfp.entry import enter

    enter("mid_train", locals(), inputs={"data": data, "parent": parent}, output=checkpoint, metrics=metrics, card=card)
