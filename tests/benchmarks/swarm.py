"""What a swarm gains over one agent on held-out tasks of the offline world, by their number of parts N.

    python tests/benchmarks/swarm.py CHECKPOINT [--sub-agents CHECKPOINT] [--untrained CHECKPOINT] [--json]
    python tests/benchmarks/swarm.py --scripted [--json]

A checkpoint is a folder, a run's folder or an address, as for ``moonflow evaluate``. ``model/swarm/ways.py`` says how
the tasks are played, and what the figures of the last line under ``--json`` mean. ``--untrained`` adds the swarm and
the single agents of another checkpoint. Every call of a tool really takes ``--latency`` seconds. ``--scripted`` has
scripted agents on both sides, which make no mistake: an upper bound of what the world, the window and the budget
allow, and no trained model. Expect some minutes with ``--scripted``, and tens of minutes with a checkpoint of the
preset tiny, on two idle CPU cores.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from model.checkpoint.load import load_model
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.evals.scorer import measuring_engine
from model.evals.swarm import (
    SLOW_TOOLS,
    Engines,
    Players,
    Task,
    groups_of,
    measured,
    of_checkpoint,
)
from model.network.served import as_served
from model.rl.tools.toolset import Toolset
from model.rollout.protocol import RolloutEngine
from model.swarm.orchestrator import SwarmLimits
from model.swarm.scripted import ScriptedOrchestrator, ScriptedSingle, ScriptedSubAgents
from model.swarm.ways import EASY, FORCED, ORACLE, SINGLE, SWARM, UNTRAINED, UNTRAINED_SINGLE, WAYS, summary
from pipelines.checkpoint_source import located
from tests.benchmarks.world_cost import trained


def scripted(tokenizer: Tokenizer, limits: SwarmLimits) -> Engines:
    """Scripted agents on both sides. An easy task is done by the orchestrator alone, as it is in the references."""

    def engines(way: str, task: Task) -> tuple[RolloutEngine, RolloutEngine]:
        subs = ScriptedSubAgents(task.worked, tokenizer)
        if way in SINGLE or task.sample.family == EASY and way == SWARM:
            shortened = way in SINGLE[1:]
            return ScriptedSingle(
                task.worked, tokenizer, limits.critical_steps, limits.max_tokens, shortened, way == "hide_tool_result"
            ), subs  # fmt: skip
        return ScriptedOrchestrator(task.worked, tokenizer, knows_parts=way == ORACLE), subs

    return engines


def ways(untrained: bool, task: Task, is_scripted: bool) -> Iterator[str]:
    """How a task is played. A scripted agent cannot delegate parts that it has no tool to find."""
    for way in WAYS:
        if (way not in (UNTRAINED, *UNTRAINED_SINGLE) or untrained) and not (
            way == FORCED and is_scripted and task.worked.begin
        ):
            yield way


def measure(
    options: argparse.Namespace, engines: Engines, tokenizer: Tokenizer, images: ImageConfig, limits: SwarmLimits
) -> list[dict[str, Any]]:
    """The table, printed as it grows."""
    table: list[dict[str, Any]] = []
    groups = groups_of(options.families.split(","), options.sizes)
    say = (lambda line: None) if options.json else (lambda line: print(line, flush=True))
    say("| family | N | way | F1 | " + " | ".join(name.replace("_", " ") for name, _ in SHOWN[1:]) + " |")
    say("|---" * (len(SHOWN) + 3) + "|")
    with Toolset(latency=dict.fromkeys(SLOW_TOOLS, options.latency)) as toolset:
        players = Players(tokenizer, images, toolset, limits, options.at_once, options.temperature)

        def chosen(task: Task) -> Iterator[str]:
            return ways(options.untrained is not None, task, options.scripted)

        for found in measured(groups, options.tasks, chosen, engines, players, split=options.split):
            table.append(found)
            shown = [f"{found.get(name, float('nan')):.{digits}f}" for name, digits in SHOWN]
            say(f"| `{found['family']}` | {found['parts']:.0f} | {found['way']} | " + " | ".join(shown) + " |")
    return table


SHOWN = (
    ("f1", 2), ("critical_steps", 1), ("seconds", 2), ("context_tokens", 0), ("total_tokens", 0), ("delegated", 2),
    ("given", 2), ("returned", 2), ("kept", 2),
)  # fmt: skip


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoint", nargs="?", help="a checkpoint's folder, a run's folder, or an address")
    add("--untrained", help="another checkpoint, whose swarm and single agents are measured too")
    add("--sub-agents", help="the checkpoint of the frozen sub-agents; default: that of its run, else the same")
    add("--scripted", action="store_true", help="scripted agents, which make no mistake; no checkpoint")
    add("--json", action="store_true", help="print nothing but the JSON object")
    add("--families", default="world_wide", help="families of the tasks, with commas between; easy tasks are added")
    add("--sizes", type=_sizes, default=[2, 4, 8, 16, 32], help="numbers of parts, with commas between")
    add("--tasks", type=int, default=4, help="held-out tasks of each number of parts")
    add("--split", choices=("eval", "train"), default="eval", help="train: tasks of training's things and wordings")
    add("--temperature", type=float, default=0.0, help="of all agents; 0: greedy; 1: as in training")
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
    if options.sub_agents is not None:
        with located(options.sub_agents, swarm=False) as frozen:
            helping = engine(frozen.folder)[0]
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
