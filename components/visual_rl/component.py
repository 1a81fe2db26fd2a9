"""KFP interface of visual_rl."""

from kfp import dsl

from components.runtime.kfp.image import PIPELINE
from components.runtime.kfp.interface import described


@dsl.component(base_image=PIPELINE, install_kfp_package=False)
@described("visual_rl")
def visual_rl(
    run_id: str,
    data: dsl.Input[dsl.Dataset],
    parent: dsl.Input[dsl.Model],
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.Markdown],
    iterations: int,
    prompts_per_iteration: int,
    samples_per_prompt: int,
    learning_rate: float,
    max_new_tokens: int,
    tasks: str,
    ptx_weight: float,
    ptx_rows: int,
    expert_precision: str,
    kept_successes: int,
    kept_per_prompt: int,
    kept_reward: float,
    engine: str,
    endpoints: str,
    weights_folder: str,
    sandbox: str,
    checkpoint_every: int,
    keep_last: int,
    keep_best: str,
    micro_batch_tokens: int,
    max_failed_episodes: float,
    max_staleness: int,
    seed: int,
):
    """Reinforcement learning with verifiable rewards on images alone, whose successes rejection_sft fine-tunes on."""
    from components.runtime.kfp.entry import enter

    enter("visual_rl", locals(), inputs={"data": data, "parent": parent}, output=checkpoint, metrics=metrics, card=card)
