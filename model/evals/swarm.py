"""What a swarm gains over one agent on held-out tasks of the offline world, by their number of parts N (source: ours).

The same tasks are played in several ways, through the same code and under the same budget of critical steps: by the
swarm, and by each other one of ``model.swarm.ways``. They are greedy, unless the players have a temperature.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np

from model.boundary.at_once import all_of
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.families.world import DRAWS
from model.data.families.world.index import View
from model.data.families.world.tasks import Drawn
from model.data.samples.sample import Sample, Split
from model.evals.score import standard_error
from model.rl.environment import FAILED, Episode, derive_seed
from model.rl.failures import attempt
from model.rl.tools.toolset import Toolset
from model.rollout.protocol import RolloutEngine
from model.swarm.baselines import MODES, Mode
from model.swarm.orchestrator import SwarmLimits, run_swarm_episode
from model.swarm.scripted import ScriptedOrchestrator, Worked
from model.swarm.ways import EASY, EASY_WAYS, ORACLE, UNTRAINED, UNTRAINED_SINGLE

FIGURES = ("critical_steps", "seconds", "context_tokens", "total_tokens", "parallelism")
SLOW_TOOLS = ("search", "open_page", "download")
"""The tools that wait for something outside, and so have a latency."""


@dataclass(frozen=True)
class Task:
    """A held-out task, and how scripted agents solve it."""

    sample: Sample
    worked: Worked


Engines = Callable[[str, Task], tuple[RolloutEngine, RolloutEngine]]
"""(way, task) -> what speaks for the leading agent, and for the sub-agents."""


@dataclass(frozen=True)
class Players:
    """What the episodes of a measurement share; ``at_once`` of them run together, and wait for each other's batch.
    ``temperature`` is that of all agents; 0 is greedy."""

    tokenizer: Tokenizer
    images: ImageConfig
    toolset: Toolset
    limits: SwarmLimits
    at_once: int = 1
    temperature: float = 0.0


def held_out_task(family: str, size: int, index: int, split: Split = "eval") -> Task:
    """The ``index``-th held-out task of so many parts, or one of training's; the same in every call."""
    drawn: Drawn = DRAWS[family](np.random.default_rng([size, index]), split, size, View())
    sample = Sample(
        f"{family}-n{size}-{index}", family, "agentic", "text", drawn.source, tools=drawn.tools, answer=drawn.answer,
        messages=[{"role": "user", "content": drawn.question}], reward=drawn.reward,
        environment={"world": {}, "parts": drawn.size},
    )  # fmt: skip
    return Task(sample, Worked(drawn.plan, View()))


def groups_of(families: Iterable[str], sizes: Iterable[int]) -> list[tuple[str, int]]:
    """What is measured, as (family, number of parts): easy tasks first."""
    sizes = list(sizes)
    return [(EASY, 1), *((family, size) for family in families if family != EASY for size in sizes)]


def of_checkpoint(
    engine: RolloutEngine, sub_engine: RolloutEngine, untrained: RolloutEngine | None, tokenizer: Tokenizer
) -> Engines:
    """A checkpoint's own engines; the oracle split is scripted and has its sub-agents."""

    def engines(way: str, task: Task) -> tuple[RolloutEngine, RolloutEngine]:
        if way == ORACLE:
            return ScriptedOrchestrator(task.worked, tokenizer, knows_parts=True), sub_engine
        return (untrained or engine) if way in (UNTRAINED, *UNTRAINED_SINGLE) else engine, sub_engine

    return engines


def measured(
    groups: Iterable[tuple[str, int]], count: int, ways: Callable[[Task], Iterable[str]], engines: Engines,
    players: Players, told: Callable[[Sequence[Episode]], object] = lambda episodes: None, split: Split = "eval",
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The rows of the table, one after another: each group's first ``count`` tasks, in each way.

    Args:
        groups: families and numbers of parts.
        ways: of a task, as one of ``WAYS``; easy tasks are played in those of ``EASY_WAYS`` alone.
        told: gets the episodes of each row.
        split: "train": tasks whose things, wordings and pages training may show, instead of held-out ones.
    """
    for family, size in groups:
        tasks = [held_out_task(family, size, index, split) for index in range(count)]
        for way in ways(tasks[0]):
            if family != EASY or way in EASY_WAYS:
                episodes = asyncio.run(play(way, tasks, engines, players))
                told(episodes)
                yield row(way, family, size, tasks, episodes)


async def play(way: str, tasks: Sequence[Task], engines: Engines, players: Players) -> list[Episode]:
    """The episodes of one way to do the tasks."""
    gate = asyncio.Semaphore(players.at_once)
    mode: Mode = next((mode for mode in MODES if mode == way.removeprefix("untrained_")), "swarm")

    async def one(number: int, task: Task) -> Episode:
        async with gate:
            engine, sub_engine = engines(way, task)
            running = run_swarm_episode(
                engine, sub_engine, players.tokenizer, task.sample, players.images, players.toolset,
                limits=players.limits, temperature=players.temperature, seed=derive_seed(0, number), mode=mode,
            )  # fmt: skip
            return await attempt(running, task.sample)

    return await all_of(one(number, each) for number, each in enumerate(tasks))


def followed(tasks: Sequence[Task], episodes: Sequence[Episode]) -> dict[str, float]:
    """What became of the parts of tasks whose true answer has a line for each part; {} if there is no such task.

    Returns:
        Shares of all parts, means over the tasks: ``given`` to a sub-agent in the words of the reference,
        ``returned`` to the orchestrator as the true line, and ``kept``, which the answer has as the true line.
    """
    shares: dict[str, list[float]] = {"given": [], "returned": [], "kept": []}
    for task, episode in zip(tasks, episodes, strict=True):
        parts, true = task.worked.parts, [part.line for part in task.worked.parts]
        if task.worked.answer(true).split("\n") != true:
            continue
        trace = getattr(episode, "trace", None)  # an episode that broke has none
        given = {agent.task for agent in trace.agents[1:]} if trace else set()
        returned = {step.result for step in trace.agents[0].steps if step.tool == "assign_task"} if trace else set()
        kept = set(episode.response.split("\n"))
        shares["given"].append(mean(part.prompt in given for part in parts))
        shares["returned"].append(mean(line in returned for line in true))
        shares["kept"].append(mean(line in kept for line in true))
    return {name: round(mean(values), 4) for name, values in shares.items() if values}


def row(way: str, family: str, size: int, tasks: Sequence[Task], episodes: Sequence[Episode]) -> dict[str, Any]:
    """One line of the table: means over the tasks; figures are of the episodes that did not break.

    ``size`` is the number of parts that was asked for, ``parts`` the mean of those that the tasks have. ``failed`` is
    the number of the episodes that broke, ``lost`` of those in which a sub-agent broke. ``followed`` says what
    ``given``, ``returned`` and ``kept`` are.
    """
    rewards = [episode.reward for episode in episodes]
    whole = [episode.metrics for episode in episodes if episode.finish_reason != FAILED]
    found: dict[str, Any] = {"way": way, "family": family, "size": size, "tasks": len(tasks)}
    found["parts"] = round(mean(each.sample.environment["parts"] for each in tasks), 1)
    found |= {"f1": round(mean(rewards), 4), "stderr": round(standard_error(rewards), 4)}
    found["answered"] = round(mean(episode.finish_reason == "answer" for episode in episodes), 4)
    found["failed"] = sum(bool(episode.failure) for episode in episodes)
    found["lost"] = sum(bool(episode.lost) for episode in episodes)
    found |= followed(tasks, episodes) if family != EASY else {}
    if whole:
        found |= {name: round(mean(metrics[name] for metrics in whole), 3) for name in FIGURES}
        found["delegated"] = round(mean(metrics["subtasks_assigned"] > 0 for metrics in whole), 4)
    return found
