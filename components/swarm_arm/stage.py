"""One arm of the swarm ablation: what does PARL make of a swarm? (source: K2.5 section on Agent Swarm)

The orchestrator starts from the cold start of its seed, whose frozen copy speaks for its sub-agents. Then the same
held-out tasks of the offline world are done by its swarm and by what a swarm is compared with.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from components.ablation.services import ArmServices, Unfinished
from components.ablation.swarm import NAME
from components.ablation.swarm.arms import ARMS, TRAINED
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.sampler import EmbeddedSampler
from components.runtime.step import StepContext
from components.swarm_arm.config import Config
from model.checkpoint.folder import load_parent
from model.data.batches.folder import DataFolder
from model.evals.scorer import measuring_engine
from model.evals.swarm import (
    SLOW_TOOLS,
    Players,
    groups_of,
    measured,
    of_checkpoint,
)
from model.network.multimodal import KimiK25
from model.network.served import as_served
from model.rl.environment import Episode
from model.rl.failures import FailureCount, warn_of_lost_sub_agents
from model.rl.ptx import WITHOUT_DELEGATION
from model.rl.tools.toolset import Toolset
from model.rl.trainer import RLSettings
from model.swarm.baselines import Mode
from model.swarm.orchestrator import SwarmLimits
from model.swarm.reward import SwarmReward
from model.swarm.training import SwarmTask, swarm_prompts, train_orchestrator, windows
from model.swarm.ways import AGENTS, EASY, EASY_WAYS, FORCED, SWARM, WAYS, best_single, summary

RESULTS = "results.json"
MOST_AT_ONCE = 64  # completions of sub-agents in one batch (ours)
COMPARED = (SWARM, *AGENTS)
"""The ways that every arm is measured in, and that are played again in windows of half the size."""


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    # 1. Data; the orchestrator, and the frozen sub-agents: the same checkpoint.
    data, folder = context.data(inputs["data"]), context.fetch(inputs["parent"])
    model = load_parent(folder, data.tokenizer)
    frozen = as_served(load_parent(folder, data.tokenizer).requires_grad_(False).eval(), "full")
    limits = SwarmLimits(
        config.critical_steps, config.sub_agent_steps, config.max_new_tokens,
        **windows("swarm_arm", model, [frozen], config.window, config.sub_agent_window),
    )  # fmt: skip

    # 2. PARL, as the step parl does it, less what the arm takes away.
    practise(model, frozen, data, limits, config, context)

    # 3. Measure: the swarm, and what it is compared with; then both again in windows of half the size.
    ways = WAYS if config.arm == TRAINED else (*COMPARED, *([FORCED] if ARMS[config.arm].forced else []))
    limits = replace(limits, critical_steps=config.measured_steps)
    played = measure(model, frozen, data, limits, ways, config)
    timed = measure(model, frozen, data, limits, (SWARM, best_single(played)), config, timing=True)
    table, halved = with_seconds(played, timed), list[dict[str, Any]]()
    if config.arm == TRAINED:
        half = {"max_tokens": limits.max_tokens // 2, "sub_agent_tokens": limits.sub_agent_window // 2}
        halved = with_seconds(measure(model, frozen, data, replace(limits, **half), COMPARED, config))

    # 4. The figures for the tracker, and for the comparison of the arms.
    result = {
        "name": NAME,
        "arm": config.arm,
        "seed": config.seed,
        "windows": [limits.max_tokens, limits.sub_agent_window],
        "table": table,
        "halved": halved,
        "summary": summary(table),
    }
    context.metrics.log(final_metrics(result), config.iterations)
    results = context.work / "results"
    results.mkdir()
    (results / RESULTS).write_text(json.dumps(result, indent=1) + "\n")
    seen = context.checkpoints.newest.tokens_seen
    return context.publish(results, kind="evals", complete=True, tokens_seen=seen, extra={"ablation": result})


def practise(
    model: KimiK25, frozen: KimiK25, data: DataFolder, limits: SwarmLimits, config: Config, context: StepContext
) -> None:
    """Train the orchestrator in place, as its arm says."""
    arm = ARMS[config.arm]
    reward = SwarmReward.until(
        arm.annealed_until(config.annealed_until), config.iterations,
        parallel=arm.parallel * config.parallel_weight, finish=arm.finish * config.finish_weight,
    )  # fmt: skip
    settings = RLSettings(
        config.iterations, config.prompts_per_iteration, config.samples_per_prompt, config.learning_rate,
        seed=config.seed, checkpoint_every=config.checkpoint_every, max_failed_episodes=config.max_failed_episodes,
    )  # fmt: skip
    mode: Mode = "must_delegate" if arm.forced else "swarm"
    task = SwarmTask(limits, mode, config.ptx_weight, config.ptx_rows, WITHOUT_DELEGATION)
    prompts = swarm_prompts(data.source, data.index, config.families.split(","), config.seed)
    episodes = config.prompts_per_iteration * config.samples_per_prompt
    acting, helping = EmbeddedSampler(as_served(model, "full"), episodes), EmbeddedSampler(frozen, 2 * episodes)
    asyncio.run(helping.publish(frozen))
    services = ArmServices(context.work, Unfinished(context.checkpoints), context.metrics, context.progress)
    with Toolset(sandbox=config.sandbox) as toolset:
        train_orchestrator(
            model, data, task, prompts, acting, lambda sample, t: helping.engine, toolset, reward, settings, services
        )


def measure(
    model: KimiK25, frozen: KimiK25, data: DataFolder, limits: SwarmLimits, ways: Iterable[str], config: Config, *,
    timing: bool = False,
) -> list[dict[str, Any]]:  # fmt: skip
    """The rows of the held-out tasks.

    Args:
        timing: play ``config.timed_tasks`` one after another, so that none waits for another's batch.

    Raises:
        MoonflowError: too many episodes failed.
    """
    ways, tasks = list(ways), config.timed_tasks if timing else config.tasks
    at_once = 1 if timing else config.at_once
    groups = groups_of(config.measured_families.split(","), map(int, config.sizes.split(",")))
    rows = sum(family != EASY or way in EASY_WAYS for family, _ in groups for way in ways)
    failures = FailureCount(config.max_failed_episodes, rows * tasks)
    acting = measuring_engine(as_served(model.eval(), "full"), at_once)
    helping = measuring_engine(frozen, min(MOST_AT_ONCE, at_once * max(size for _, size in groups)))
    engines = of_checkpoint(acting, helping, helping, data.tokenizer)
    with Toolset(sandbox=config.sandbox, latency=dict.fromkeys(SLOW_TOOLS, config.latency)) as toolset:
        players = Players(data.tokenizer, data.image_config, toolset, limits, at_once)

        def told(episodes: Sequence[Episode]) -> None:
            failures.add(episodes)
            warn_of_lost_sub_agents(episodes)

        return list(measured(groups, tasks, lambda task: ways, engines, players, told))


def with_seconds(played: Sequence[Mapping[str, Any]], timed: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """The rows, with the seconds of those that were played one after another, and without those of all others."""
    seconds = {(row["way"], row["family"], row["size"]): row["seconds"] for row in timed if "seconds" in row}
    rows = list[dict[str, Any]]()
    for row in played:
        key = (row["way"], row["family"], row["size"])
        kept = {name: value for name, value in row.items() if name != "seconds"}
        rows.append(kept | ({"seconds": seconds[key]} if key in seconds else {}))
    return rows


def final_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The figures for the tracker: the summary, and each way's F1, steps and seconds by family and number of parts."""
    found = {
        f"swarm/{name}": float(value) for name, value in result["summary"].items() if isinstance(value, int | float)
    }
    for windows_, rows in (("", result["table"]), ("halved/", result["halved"])):
        for row in rows:
            for name in ("f1", "critical_steps", "seconds", "context_tokens", "delegated"):
                if name in row:
                    found[f"{windows_}{name}/{row['way']}/{row['family']}/n{row['size']}"] = float(row[name])
    for name in ("failed", "lost"):
        found[f"episodes/{name}"] = float(sum(row[name] for row in (*result["table"], *result["halved"])))
    return found
