"""KFP interface of fusion_arm."""

from kfp import dsl

from components.runtime.image import PIPELINE
from components.runtime.interface import described


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
    """One arm of the fusion ablation with one seed: joint pre-training from the same first weights, then its measures.

    `cell` is the arm and the seed, for example `early-0`: a KFP loop over records knows their values as texts only.
    """
    from components.fusion_arm.arms import of_cell
    from components.runtime.entry import enter

    arguments = {**locals(), **of_cell(cell)}
    enter("fusion_arm", arguments, inputs={"data": data}, output=evals, metrics=metrics, card=card)
