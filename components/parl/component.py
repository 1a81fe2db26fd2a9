"""KFP interface of parl."""

from kfp import dsl

from components.runtime.kfp.image import PIPELINE
from components.runtime.kfp.interface import described


@dsl.component(base_image=PIPELINE, install_kfp_package=False)
@described("parl")
def parl(
    run_id: str,
    data: dsl.Input[dsl.Dataset],
    policy: dsl.Input[dsl.Model],
    sub_agents: dsl.Input[dsl.Model],
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    card: dsl.Output[dsl.Markdown],
    iterations: int,
    prompts_per_iteration: int,
    samples_per_prompt: int,
    learning_rate: float,
    critical_steps: int,
    families: str,
    tasks: str,
    sub_agent_steps: int,
    max_new_tokens: int,
    window: int,
    sub_agent_window: int,
    completions_at_once: int,
    larger_sub_agents: str,
    larger_from: float,
    larger_until: float,
    parallel_weight: float,
    finish_weight: float,
    annealed_until: float,
    ptx_weight: float,
    ptx_rows: int,
    expert_precision: str,
    engine: str,
    endpoints: str,
    weights_folder: str,
    sub_agent_endpoints: str,
    sandbox: str,
    checkpoint_every: int,
    keep_last: int,
    keep_best: str,
    micro_batch_tokens: int,
    max_failed_episodes: float,
    max_staleness: int,
    seed: int,
):
    """Train an orchestrator that hands work to frozen sub-agents (parallel-agent reinforcement learning)."""
    from components.runtime.kfp.entry import enter

    inputs = {"data": data, "policy": policy, "sub_agents": sub_agents}
    enter("parl", locals(), inputs=inputs, output=checkpoint, metrics=metrics, card=card)
