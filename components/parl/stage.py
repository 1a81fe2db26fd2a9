"""PARL: an orchestrator learns to use frozen sub-agents in parallel (source: K2.5 section on Agent Swarm)."""

from __future__ import annotations

import asyncio
from contextlib import closing

from components.parl.config import Config
from components.parl.traces import RoundTraces
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.sampler import EmbeddedSampler, sampler
from components.runtime.step import StepContext
from model.boundary.errors import MoonflowError
from model.checkpoint.folder import load_parent
from model.data.batches.folder import DataFolder
from model.data.samples.sample import Sample
from model.network.multimodal import KimiK25
from model.network.served import as_served
from model.rl.environment import Episode
from model.rl.prompts import PromptPool
from model.rl.ptx import ptx
from model.rl.tools.toolset import Toolset
from model.rl.trainer import RLSettings, RLTrainer
from model.swarm.orchestrator import SwarmLimits, run_swarm_episode
from model.swarm.reward import SwarmReward
from model.swarm.schedule import SubAgentSchedule

ANNEALED = 0.75  # share of the rounds after which lambda1 = lambda2 = 0 (ours)


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    # 1. Prompts: searches of the train shards that a swarm can divide. They never ask to work in parallel.
    data = context.data(inputs["data"])
    families = config.families.split(",")
    prompts = PromptPool(data.source, data.index, families=families, modalities=["text"], seed=config.seed)

    # 2. The orchestrator is trained; its sub-agents are a fixed earlier checkpoint. Both act as they would be served.
    model = load_parent(context.fetch(inputs["policy"]), data.tokenizer)
    episodes = config.prompts_per_iteration * config.samples_per_prompt
    acting = sampler(
        config, config.endpoints, as_served(model, config.expert_precision), episodes, context, data,
        while_trained=config.max_staleness > 0,
    )  # fmt: skip
    frozen = _frozen(inputs["sub_agents"], config, context, data)
    helping = sampler(config, config.sub_agent_endpoints, frozen, 2 * episodes, context, data, "sub-agents")
    larger = _frozen(config.larger_sub_agents, config, context, data) if config.larger_sub_agents else None
    limits = _limits(config, model, [frozen, *([larger] if larger is not None else [])])

    # 3. Environment: a closed world to search, sub-agents whose answers are observations. Larger ones may come later.
    with closing(acting), closing(helping), Toolset(sandbox=config.sandbox) as toolset:
        asyncio.run(helping.publish(frozen))
        schedule = SubAgentSchedule.of_shares(config.iterations, config.larger_from, config.larger_until)
        later = EmbeddedSampler(larger, 2 * episodes) if larger is not None else helping

        async def rollout(sample: Sample, seed: int, t: int) -> Episode:
            speaking = later if schedule.larger(t, sample.key) else helping
            episode = await run_swarm_episode(
                acting.engine, speaking.engine, data.tokenizer, sample, data.image_config, toolset,
                limits=limits, temperature=1.0, seed=seed,
            )  # fmt: skip
            return traces.carried(t + 1, episode)

        async def publish(policy: KimiK25) -> None:
            await acting.publish(as_served(policy, config.expert_precision))

        # 4. Train: the auxiliary rewards are gone before the end, so the last rounds see the outcome alone.
        reward = SwarmReward(config.auxiliary, config.auxiliary, anneal_iterations=int(ANNEALED * config.iterations))
        settings = RLSettings(
            config.iterations, config.prompts_per_iteration, config.samples_per_prompt, config.learning_rate,
            seed=config.seed, checkpoint_every=config.checkpoint_every, expert_precision=config.expert_precision,
            micro_batch_tokens=config.micro_batch_tokens, max_failed_episodes=config.max_failed_episodes,
            max_staleness=config.max_staleness,
        )  # fmt: skip
        traces = RoundTraces(context, settings, reward)
        RLTrainer(
            model, prompts, rollout, publish, settings,
            pad_id=data.tokenizer.pad_id, tokenizer_folder=data.path, services=context, reward=reward,
            ptx=ptx(data, weight=config.ptx_weight, rows=config.ptx_rows, tokens=_context(model), seed=config.seed),
            watch=traces, ranks=context.ranks,
        ).train()  # fmt: skip
    return context.checkpoints.newest


def _frozen(uri: str, config: Config, context: StepContext, data: DataFolder) -> KimiK25:
    """The checkpoint at an address, as it speaks for sub-agents."""
    model = load_parent(context.fetch(uri), data.tokenizer).requires_grad_(False).eval()
    return as_served(model.to(context.ranks.device), config.expert_precision)


def _context(model: KimiK25) -> int:
    return model.config.text_config.max_position_embeddings


def _limits(config: Config, model: KimiK25, sub_agents: list[KimiK25]) -> SwarmLimits:
    """The limits of an episode.

    Raises:
        MoonflowError: a window is larger than its model's context.
    """
    most, most_of_subs = _context(model), min(map(_context, sub_agents))
    for name, window, context in (
        ("window", config.window, most), ("sub_agent_window", config.sub_agent_window, most_of_subs),
    ):  # fmt: skip
        if window > context:
            raise MoonflowError(f"parl.{name} is {window}, and the model has a context of {context}: lower it")
    window = config.window or most
    return SwarmLimits(
        config.critical_steps, config.sub_agent_steps, config.max_new_tokens,
        max_tokens=window, sub_agent_tokens=config.sub_agent_window or min(window, most_of_subs),
    )  # fmt: skip
