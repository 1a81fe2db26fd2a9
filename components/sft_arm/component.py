"""KFP interface of sft_arm."""

from kfp import dsl

from components.runtime.kfp.image import PIPELINE
from components.runtime.kfp.interface import described


@dsl.component(base_image=PIPELINE, install_kfp_package=False)
@described("sft_arm")
def sft_arm(
    run_id: str,
    cell: str,
    data: dsl.Input[dsl.Dataset],
    parent: dsl.Input[dsl.Model],
    evals: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.Markdown],
    mixture: str,
    steps: int,
    learning_rate: float,
    tokens_per_row: int,
    rows: int,
    products: str,
    checkpoint_every: int,
    program_samples: int,
    samples: int,
    sandbox: str,
    max_batch: int,
    max_failed_episodes: float,
):
    """Fine-tune a checkpoint as one arm of the SFT ablation with one seed, and measure tool use on images and vision.

    `cell` names the arm and the seed in one text, for example `text-0`, because a KFP loop over records would pass the
    seed as text.
    """
    from components.ablation.cells import of_cell
    from components.ablation.sft.arms import ARMS
    from components.runtime.kfp.entry import enter

    arguments, inputs = {**locals(), **of_cell(cell, ARMS)}, {"data": data, "parent": parent}
    enter("sft_arm", arguments, inputs=inputs, output=evals, metrics=metrics, card=card)
