"""What a swarm gains over one agent on held-out tasks of the offline world, by their number of parts N.

    python tests/benchmarks/swarm.py CHECKPOINT [--untrained CHECKPOINT] [--json]
    python tests/benchmarks/swarm.py --scripted [--json]

A checkpoint is a folder, a run's folder or an address, as for ``moonflow evaluate``. The same tasks are played by the
swarm and by each baseline of ``model/swarm/baselines.py``, through the same code and under the same budget of critical
steps: an orchestrator that must delegate; the oracle split, which is a scripted orchestrator over the checkpoint's own
sub-agents; one agent, whose episode ends with its window, or whose context is shortened (``hide_tool_result``,
``discard_all``). ``--untrained`` adds the swarm of another checkpoint. Every call of a tool really takes ``--latency``
seconds. ``--scripted`` has scripted agents on both sides, which make no mistake: an upper bound of what the world, the
window and the budget allow, and no trained model.

The last line under ``--json``, over the tasks of two parts or more:

- ``f1_gain_points``: 100 x (F1 of the swarm - F1 of the best of the three single agents, by its mean);
- ``critical_steps_ratio``, ``wall_clock_ratio``: that agent's steps and seconds by the swarm's; above 1 the swarm is
  faster. An agent that stops early, as its window is used up, looks faster than it is.
- ``easy_overhead``: critical steps of the swarm by those of the plain single agent, on tasks that need no division.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from model.boundary.at_once import all_of
from model.checkpoint.load import load_model
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.families.world import DRAWS
from model.data.families.world.index import View
from model.data.families.world.tasks import Drawn
from model.data.samples.sample import Sample
from model.evals.score import standard_error
from model.evals.scorer import measuring_engine
from model.network.served import as_served
from model.rl.environment import FAILED, Episode, derive_seed
from model.rl.failures import attempt
from model.rl.tools.toolset import Toolset
from model.rollout.protocol import RolloutEngine
from model.swarm.baselines import MODES, Mode
from model.swarm.orchestrator import SwarmLimits, run_swarm_episode
from model.swarm.scripted import ScriptedOrchestrator, ScriptedSingle, ScriptedSubAgents, Worked
from pipelines.checkpoint_source import located
from tests.benchmarks.world_cost import trained

EASY = "world_easy"
ORACLE, UNTRAINED = "oracle_split", "untrained_swarm"
SINGLE = ("single", "hide_tool_result", "discard_all")
FIGURES = ("critical_steps", "seconds", "context_tokens", "total_tokens", "parallelism")


@dataclass(frozen=True)
class Task:
    """A held-out task, and how the scripted agents solve it."""

    sample: Sample
    worked: Worked


Engines = Callable[[str, Task], tuple[RolloutEngine, RolloutEngine]]
"""(way, task) -> what speaks for the leading agent, and for the sub-agents."""


def task(family: str, size: int, index: int) -> Task:
    """The ``index``-th held-out task of so many parts; the same in every call."""
    drawn: Drawn = DRAWS[family](np.random.default_rng([size, index]), "eval", size, View())
    sample = Sample(
        f"{family}-n{size}-{index}", family, "agentic", "text", drawn.source, tools=drawn.tools, answer=drawn.answer,
        messages=[{"role": "user", "content": drawn.question}], reward=drawn.reward,
        environment={"world": {}, "parts": drawn.size},
    )  # fmt: skip
    return Task(sample, Worked(drawn.plan, View()))


def scripted(tokenizer: Tokenizer, limits: SwarmLimits) -> Engines:
    """Scripted agents on both sides. An easy task is done by the orchestrator alone, as it is in the references."""

    def engines(way: str, task: Task) -> tuple[RolloutEngine, RolloutEngine]:
        subs = ScriptedSubAgents(task.worked, tokenizer)
        if way in SINGLE or task.sample.family == EASY and way == "swarm":
            shortened = way in SINGLE[1:]
            return ScriptedSingle(
                task.worked, tokenizer, limits.critical_steps, limits.max_tokens, shortened, way == "hide_tool_result"
            ), subs  # fmt: skip
        return ScriptedOrchestrator(task.worked, tokenizer, knows_parts=way == ORACLE), subs

    return engines


def of_checkpoint(
    engine: RolloutEngine, sub_engine: RolloutEngine, untrained: RolloutEngine | None, tokenizer: Tokenizer
) -> Engines:
    """A checkpoint's own engines; the oracle split is scripted and has its sub-agents."""

    def engines(way: str, task: Task) -> tuple[RolloutEngine, RolloutEngine]:
        if way == ORACLE:
            return ScriptedOrchestrator(task.worked, tokenizer, knows_parts=True), sub_engine
        return (untrained or engine) if way == UNTRAINED else engine, sub_engine

    return engines


async def play(
    way: str, tasks: Sequence[Task], engines: Engines, tokenizer: Tokenizer, images: ImageConfig, toolset: Toolset,
    limits: SwarmLimits, at_once: int,
) -> list[Episode]:  # fmt: skip
    """The episodes of one way to do the tasks, greedy."""
    gate = asyncio.Semaphore(at_once)
    mode: Mode = next((mode for mode in MODES if mode == way), "swarm")

    async def one(number: int, task: Task) -> Episode:
        async with gate:
            engine, sub_engine = engines(way, task)
            running = run_swarm_episode(
                engine, sub_engine, tokenizer, task.sample, images, toolset, limits=limits, temperature=0.0,
                seed=derive_seed(0, number), mode=mode,
            )  # fmt: skip
            return await attempt(running, task.sample)

    return await all_of(one(number, each) for number, each in enumerate(tasks))


def row(way: str, family: str, tasks: Sequence[Task], episodes: Sequence[Episode]) -> dict[str, Any]:
    """One line of the table: means over the tasks; figures are of the episodes that did not break."""
    rewards = [episode.reward for episode in episodes]
    whole = [episode.metrics for episode in episodes if episode.finish_reason != FAILED]
    found: dict[str, Any] = {"way": way, "family": family, "tasks": len(tasks)}
    found["parts"] = round(mean(each.sample.environment["parts"] for each in tasks), 1)
    found |= {"f1": round(mean(rewards), 4), "stderr": round(standard_error(rewards), 4)}
    found["answered"] = round(mean(episode.finish_reason == "answer" for episode in episodes), 4)
    found["failed"] = sum(bool(episode.failure or episode.lost) for episode in episodes)
    if whole:
        found |= {name: round(mean(metrics[name] for metrics in whole), 3) for name in FIGURES}
        found["delegated"] = round(mean(metrics["subtasks_assigned"] > 0 for metrics in whole), 4)
    return found


def ways(untrained: bool, task: Task, is_scripted: bool) -> Iterator[str]:
    """How a task is played. A scripted agent cannot delegate parts that it has no tool to find."""
    for way in ("swarm", UNTRAINED, "must_delegate", ORACLE, *SINGLE):
        if (way != UNTRAINED or untrained) and not (way == "must_delegate" and is_scripted and task.worked.begin):
            yield way


def summary(table: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of the last line; null where an episode of each kind is missing."""

    def figures(way: str, easy: bool, name: str) -> float:
        values = [each[name] for each in table if each["way"] == way and (each["family"] == EASY) is easy]
        return mean(values) if values else float("nan")

    try:
        best = max(SINGLE, key=lambda way: figures(way, False, "f1"))
        found = {
            "f1_gain_points": 100 * (figures("swarm", False, "f1") - figures(best, False, "f1")),
            "critical_steps_ratio": figures(best, False, "critical_steps") / figures("swarm", False, "critical_steps"),
            "wall_clock_ratio": figures(best, False, "seconds") / figures("swarm", False, "seconds"),
            "easy_overhead": figures("swarm", True, "critical_steps") / figures("single", True, "critical_steps"),
        }
    except KeyError:  # every episode of a row broke
        return dict.fromkeys(("f1_gain_points", "critical_steps_ratio", "wall_clock_ratio", "easy_overhead"))
    return {"best_single": best} | {name: round(value, 3) if value == value else None for name, value in found.items()}


def measure(
    options: argparse.Namespace, engines: Engines, tokenizer: Tokenizer, images: ImageConfig, limits: SwarmLimits
) -> list[dict[str, Any]]:
    """The table, printed as it grows."""
    table: list[dict[str, Any]] = []
    groups = [(EASY, 1), *((family, size) for family in options.families.split(",") for size in options.sizes)]
    delays = dict.fromkeys(("search", "open_page", "download"), options.latency)
    say = (lambda line: None) if options.json else (lambda line: print(line, flush=True))
    say("| family | N | way | F1 | critical steps | seconds | largest context | all tokens | delegated |")
    say("|---|---|---|---|---|---|---|---|---|")
    with Toolset(latency=delays) as toolset:
        for family, size in groups:
            tasks = [task(family, size, index) for index in range(options.tasks)]
            for way in ways(options.untrained is not None, tasks[0], options.scripted):
                if family == EASY and way not in ("swarm", "single", UNTRAINED):
                    continue
                episodes = asyncio.run(
                    play(way, tasks, engines, tokenizer, images, toolset, limits, options.at_once)
                )  # fmt: skip
                table.append(found := row(way, family, tasks, episodes))
                shown = [f"{found.get(name, float('nan')):.{digits}f}" for name, digits in SHOWN]
                say(f"| `{family}` | {found['parts']:.0f} | {way} | " + " | ".join(shown) + " |")
    return table


SHOWN = (("f1", 2), ("critical_steps", 1), ("seconds", 2), ("context_tokens", 0), ("total_tokens", 0), ("delegated", 2))


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoint", nargs="?", help="a checkpoint's folder, a run's folder, or an address")
    add("--untrained", help="another checkpoint, whose swarm is measured too")
    add("--scripted", action="store_true", help="scripted agents, which make no mistake; no checkpoint")
    add("--json", action="store_true", help="print nothing but the JSON object")
    add("--families", default="world_wide", help="families of the tasks, with commas between; easy tasks are added")
    add("--sizes", type=_sizes, default=[2, 4, 8, 16, 32], help="numbers of parts, with commas between")
    add("--tasks", type=int, default=4, help="held-out tasks of each number of parts")
    add("--latency", type=float, default=0.05, help="seconds that every call of a tool takes")
    add("--budget", type=int, default=100, help="critical steps of an episode")
    add("--sub-steps", type=int, default=12, help="completions of a sub-agent")
    add("--window", type=int, default=0, help="tokens of the leading agent; 0: the model's context, scripted 4096")
    add("--sub-window", type=int, default=0, help="tokens of a sub-agent; 0: as many")
    add("--at-once", type=int, default=0, help="episodes at once; 0: one, so that none waits for another; scripted: 4")
    return parser.parse_args(arguments)


def limits_of(options: argparse.Namespace, context: int) -> SwarmLimits:
    window = options.window or context
    return SwarmLimits(
        options.budget, options.sub_steps, max_new_tokens=window // 2, max_tokens=window,
        sub_agent_tokens=options.sub_window or None,
    )  # fmt: skip


def of_scripts(options: argparse.Namespace) -> dict[str, Any]:
    options.at_once = options.at_once or 4
    tokenizer, limits = trained(), limits_of(options, 4096)
    table = measure(options, scripted(tokenizer, limits), tokenizer, ImageConfig(), limits)
    return {"agents": "scripted: an upper bound, no trained model", **summary(table), "table": table}


def of_model(options: argparse.Namespace) -> dict[str, Any]:
    options.at_once = options.at_once or 1

    def engine(folder: Path) -> tuple[RolloutEngine, int]:
        model = as_served(load_model(folder).eval(), "full")
        return measuring_engine(model, 64), model.config.text_config.max_position_embeddings

    with located(options.checkpoint) as source:
        tokenizer, (leading, context) = Tokenizer.load(source.folder), engine(source.folder)
        helping = leading if source.sub_agents is None else engine(source.sub_agents)[0]
    untrained = None
    if options.untrained is not None:
        with located(options.untrained, swarm=False) as other:
            untrained = engine(other.folder)[0]
    limits = limits_of(options, context)
    table = measure(options, of_checkpoint(leading, helping, untrained, tokenizer), tokenizer, ImageConfig(), limits)
    return {"agents": source.title, **summary(table), "table": table}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    torch.set_num_threads(1)
    result: dict[str, Any] = {"benchmark": "swarm"}
    if options.scripted:
        result |= of_scripts(options)
    elif options.checkpoint is None:
        result["not_measured"] = "no checkpoint to measure: give CHECKPOINT, or --scripted"
    else:
        result |= of_model(options)
    if not options.json:
        print(", ".join(f"{name} {value}" for name, value in result.items() if name != "table"))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
