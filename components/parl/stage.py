"""PARL: an orchestrator learns to use frozen sub-agents in parallel (source: K2.5 section on Agent Swarm)."""

from __future__ import annotations

import asyncio
from contextlib import closing

from components.parl.config import Config
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.sampler import sampler
from components.runtime.step import StepContext
from model.checkpoint.folder import load_parent
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

TASKS = ("wide_search",)
ANNEALED = 0.75  # share of the rounds after which lambda1 = lambda2 = 0 (ours)


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    # 1. Prompts: wide searches of the train shards. They never ask to work in parallel.
    data = context.data(inputs["data"])
    prompts = PromptPool(data.source, data.index, families=TASKS, modalities=["text"], seed=config.seed)

    # 2. The orchestrator is trained; its sub-agents are a fixed earlier checkpoint. Both act as they would be served.
    model = load_parent(context.fetch(inputs["policy"]), data.tokenizer)
    episodes = config.prompts_per_iteration * config.samples_per_prompt
    acting = sampler(
        config, config.endpoints, as_served(model, config.expert_precision), episodes, context, data,
        copies=config.max_staleness > 0,
    )  # fmt: skip
    sub_agents = load_parent(context.fetch(inputs["sub_agents"]), data.tokenizer).requires_grad_(False).eval()
    frozen = as_served(sub_agents.to(context.ranks.device), config.expert_precision)
    helping = sampler(config, config.sub_agent_endpoints, frozen, 2 * episodes, context, data, "sub-agents")
    limits = SwarmLimits(config.critical_steps, max_tokens=model.config.text_config.max_position_embeddings)

    # 3. Environment: a closed world to search, sub-agents whose answers are observations.
    with closing(acting), closing(helping), Toolset(sandbox=config.sandbox) as toolset:
        asyncio.run(helping.publish(frozen))

        async def rollout(sample: Sample, seed: int) -> Episode:
            return await run_swarm_episode(
                acting.engine, helping.engine, data.tokenizer, sample, data.image_config, toolset,
                limits=limits, temperature=1.0, seed=seed,
            )  # fmt: skip

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
        RLTrainer(
            model, prompts, rollout, publish, settings,
            pad_id=data.tokenizer.pad_id, tokenizer_folder=data.path, services=context, reward=reward,
            ptx=ptx(data, weight=config.ptx_weight, rows=config.ptx_rows, tokens=limits.max_tokens, seed=config.seed),
            ranks=context.ranks,
        ).train()  # fmt: skip
    return context.checkpoints.newest
