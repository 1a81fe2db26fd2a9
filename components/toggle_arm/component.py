"""KFP interface of toggle_arm."""

from kfp import dsl

from components.runtime.kfp.image import PIPELINE
from components.runtime.kfp.interface import described


@dsl.component(base_image=PIPELINE, install_kfp_package=False)
@described("toggle_arm")
def toggle_arm(
    run_id: str,
    cell: str,
    data: dsl.Input[dsl.Dataset],
    parent: dsl.Input[dsl.Model],
    evals: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.Markdown],
    iterations: int,
    prompts_per_iteration: int,
    samples_per_prompt: int,
    prompts: int,
    learning_rate: float,
    accuracy: float,
    every: int,
    percentile: float,
    budget: int,
    expert_precision: str,
    checkpoint_every: int,
    samples: int,
    sandbox: str,
    max_batch: int,
    max_failed_episodes: float,
):
    """Train a checkpoint by RL as one arm of the Toggle ablation with one seed, and measure accuracy and length.

    `cell` names the arm and the seed in one text, for example `toggle-0`, because a KFP loop over records would pass
    the seed as text.
    """
    from components.ablation.cells import of_cell
    from components.ablation.toggle.arms import ARMS
    from components.runtime.kfp.entry import enter

    arguments, inputs = {**locals(), **of_cell(cell, ARMS)}, {"data": data, "parent": parent}
    enter("toggle_arm", arguments, inputs=inputs, output=evals, metrics=metrics, card=card)
