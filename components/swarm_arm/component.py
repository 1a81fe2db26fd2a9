"""KFP interface of swarm_arm."""

from kfp import dsl

from components.runtime.kfp.image import PIPELINE
from components.runtime.kfp.interface import described


@dsl.component(base_image=PIPELINE, install_kfp_package=False)
@described("swarm_arm")
def swarm_arm(
    run_id: str,
    cell: str,
    data: dsl.Input[dsl.Dataset],
    parent: dsl.Input[dsl.Model],
    evals: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.Markdown],
    families: str,
    iterations: int,
    prompts_per_iteration: int,
    samples_per_prompt: int,
    learning_rate: float,
    critical_steps: int,
    sub_agent_steps: int,
    max_new_tokens: int,
    window: int,
    sub_agent_window: int,
    parallel_weight: float,
    finish_weight: float,
    annealed_until: float,
    ptx_weight: float,
    ptx_rows: int,
    checkpoint_every: int,
    measured_families: str,
    sizes: str,
    tasks: int,
    at_once: int,
    timed_tasks: int,
    measured_steps: int,
    latency: float,
    sandbox: str,
    max_failed_episodes: float,
):
    """Train an orchestrator from a cold start as one arm of the swarm ablation, and measure what its swarm gains.

    `cell` is the arm, for example `trained`; its seed is that of the cold start, a checkpoint of swarm_start.
    """
    from components.ablation.swarm.arms import seed_of
    from components.runtime.kfp.entry import MANIFEST_URI, enter

    arguments = {**locals(), "arm": cell, "seed": seed_of(parent.metadata.get(MANIFEST_URI, ""))}
    enter("swarm_arm", arguments, inputs={"data": data, "parent": parent}, output=evals, metrics=metrics, card=card)
