"""KFP interface of rl_arm."""

from kfp import dsl

from components.runtime.kfp.image import PIPELINE
from components.runtime.kfp.interface import described


@dsl.component(base_image=PIPELINE, install_kfp_package=False)
@described("rl_arm")
def rl_arm(
    run_id: str,
    cell: str,
    data: dsl.Input[dsl.Dataset],
    parent: dsl.Input[dsl.Model],
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.Markdown],
    arm: str,
    mixture: str,
    tokens_per_row: int,
    rows: int,
    products: str,
    start_steps: int,
    start_learning_rate: float,
    tuning_steps: int,
    tuning_learning_rate: float,
    share: float,
    visual_families: str,
    visual_iterations: int,
    joint_iterations: int,
    prompts_per_iteration: int,
    samples_per_prompt: int,
    learning_rate: float,
    max_new_tokens: int,
    ptx_weight: float,
    ptx_rows: int,
    kept_successes: int,
    kept_per_prompt: int,
    kept_reward: float,
    checkpoint_every: int,
    samples: int,
    sandbox: str,
    max_batch: int,
    max_failed_episodes: float,
    successes: dsl.Input[dsl.Model] | None = None,
):
    """Train a checkpoint as one arm of the RL ablation with one seed, and measure vision and text.

    `cell` is the seed, for example `0`; the pipeline names the arm in `arm` and gives it the checkpoint of the arm that
    it starts from. The output is the arm's own checkpoint, whose manifest holds the scores.
    """
    from components.runtime.kfp.entry import enter

    arguments, inputs = {**locals(), "seed": int(cell)}, {"data": data, "parent": parent, "successes": successes}
    enter("rl_arm", arguments, inputs=inputs, output=checkpoint, metrics=metrics, card=card)
