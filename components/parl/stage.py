"""PARL: an orchestrator learns to use frozen sub-agents in parallel (source: K2.5 section on Agent Swarm)."""

from __future__ import annotations

import asyncio
from contextlib import closing
from dataclasses import dataclass

from components.parl.config import Config
from components.parl.traces import RoundTraces
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.sampler import Sampler, sampler
from components.runtime.step import StepContext
from model.checkpoint.folder import load_parent
from model.data.batches.folder import DataFolder
from model.data.samples.sample import Sample
from model.network.multimodal import KimiK25
from model.network.served import as_served
from model.rl.tasks.mixture import TaskMixture
from model.rl.tasks.names import parse_task_shares, takes_all
from model.rl.tasks.own_tasks import OwnTasks
from model.rl.tools.toolset import Toolset
from model.rl.trainer import RLSettings
from model.rollout.embedded import EmbeddedEngine
from model.rollout.pool import Pool
from model.rollout.protocol import RolloutEngine
from model.swarm.orchestrator import SwarmLimits
from model.swarm.pools import SwarmPools
from model.swarm.reward import SwarmReward
from model.swarm.schedule import SubAgentSchedule
from model.swarm.training import SwarmTask, swarm_prompts, train_orchestrator, windows


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    # 1. The orchestrator is trained; its sub-agents are a fixed earlier checkpoint. Both act as they would be served.
    data = context.data(inputs["data"])
    model = load_parent(context.fetch(inputs["policy"]), data.tokenizer, context.ranks.expert_share)
    episodes = config.prompts_per_iteration * config.samples_per_prompt
    rows = config.completions_at_once  # of the embedded engine, whose pool has no more completions in flight than that
    acting = sampler(
        config, config.endpoints, as_served(model, config.expert_precision), rows or episodes, context, data,
        while_trained=config.max_staleness > 0,
    )  # fmt: skip
    frozen = _frozen(inputs["sub_agents"], config, context, data)
    helping = sampler(config, config.sub_agent_endpoints, frozen, rows or 2 * episodes, context, data, "sub-agents")
    larger = _frozen(config.larger_sub_agents, config, context, data) if config.larger_sub_agents else None

    # 2. Prompts: tasks of the train shards that a swarm can divide, tasks of the user's own in their shares, and the
    # limits of an episode.
    shares = parse_task_shares(config.tasks)
    families = config.families.split(",")
    pool = None if takes_all(shares) else swarm_prompts(data.source, data.index, families, config.seed)
    sub_agents = [frozen, *([larger] if larger is not None else [])]
    limits = SwarmLimits(
        config.critical_steps, config.sub_agent_steps, config.max_new_tokens,
        **windows("parl", model, sub_agents, config.window, config.sub_agent_window),
    )  # fmt: skip
    task = SwarmTask(limits, ptx_weight=config.ptx_weight, ptx_rows=config.ptx_rows)

    # 3. Train: the auxiliary rewards are gone before the end, so the last rounds see the outcome alone.
    reward = SwarmReward.until(
        config.annealed_until, config.iterations, parallel=config.parallel_weight, finish=config.finish_weight
    )  # fmt: skip
    settings = RLSettings(
        config.iterations, config.prompts_per_iteration, config.samples_per_prompt, config.learning_rate,
        seed=config.seed, checkpoint_every=config.checkpoint_every, expert_precision=config.expert_precision,
        micro_batch_tokens=config.micro_batch_tokens, max_failed_episodes=config.max_failed_episodes,
        max_staleness=config.max_staleness,
    )  # fmt: skip
    with (
        closing(acting),
        closing(helping),
        Toolset(sandbox=config.sandbox) as toolset,
        OwnTasks(list(shares)) as own,
    ):
        asyncio.run(helping.publish(frozen))
        schedule = SubAgentSchedule.of_shares(config.iterations, config.larger_from, config.larger_until)
        pools = SwarmPools(config.completions_at_once, context.ranks)
        first = pools.sub_agents.over(helping.engine)
        later = pools.sub_agents.over(EmbeddedEngine(larger, rows or 2 * episodes)) if larger is not None else first

        def speaking(sample: Sample, t: int) -> RolloutEngine:
            return later if schedule.larger(t, sample.key) else first

        traces = RoundTraces(context, settings, reward)
        prompts = TaskMixture(
            own, shares, pool, seed=config.seed, allowed=config.max_failed_episodes, ranks=context.ranks,
            warn=context.warn,
        )  # fmt: skip
        train_orchestrator(
            model, data, task, prompts, Queued(acting, pools.orchestrator), speaking, toolset, reward, settings,
            context, score=own.scored, traces=traces, measure=pools, ranks=context.ranks,
        )  # fmt: skip
    return context.checkpoints.newest


@dataclass(frozen=True)
class Queued:
    """A sampler whose requests take their turn in a pool."""

    sampler: Sampler
    pool: Pool

    @property
    def engine(self) -> RolloutEngine:
        """What generates."""
        return self.pool.over(self.sampler.engine)

    async def publish(self, model: KimiK25) -> None:
        """As ``Sampler.publish``."""
        await self.sampler.publish(model)


def _frozen(uri: str, config: Config, context: StepContext, data: DataFolder) -> KimiK25:
    """The checkpoint at an address, as it speaks for sub-agents."""
    model = load_parent(context.fetch(uri), data.tokenizer).requires_grad_(False).eval()
    return as_served(model.to(context.ranks.device), config.expert_precision)
