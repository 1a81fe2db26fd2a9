"""KFP interface of fusion_arm."""

from kfp import dsl

from components.runtime.kfp.image import PIPELINE
from components.runtime.kfp.interface import described


@dsl.component(base_image=PIPELINE, install_kfp_package=False)
@described("fusion_arm")
def fusion_arm(
    run_id: str,
    cell: str,
    data: dsl.Input[dsl.Dataset],
    evals: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.Markdown],
    preset: str,
    steps: int,
    learning_rate: float,
    final_ratio: float,
    tokens_per_row: int,
    rows: int,
    products: str,
    checkpoint_every: int,
    probe_every: int,
    probe_samples: int,
    samples: int,
    sandbox: str,
    max_batch: int,
    max_failed_episodes: float,
):
    """Train and measure one arm of the fusion ablation with one seed. A seed gives all arms the same first weights.

    `cell` names the arm and the seed in one text, for example `early-0`, because a KFP loop over records would pass the
    seed as text.
    """
    from components.ablation.cells import of_cell
    from components.ablation.fusion.arms import ARMS
    from components.runtime.kfp.entry import enter

    arguments = {**locals(), **of_cell(cell, ARMS)}
    enter("fusion_arm", arguments, inputs={"data": data}, output=evals, metrics=metrics, card=card)
