"""What a task of the world costs one agent and a swarm, by family and number of parts: calls, steps, tokens, seconds.

    python tests/benchmarks/world_cost.py [--json] [--tokenizer FOLDER]

The agents are scripted, make no mistake and think nothing, so real models need more. Critical steps are counted as in
an episode: a turn of the orchestrator is one, a group of assignments as many as its slowest sub-agent has turns. Expect
about one minute on one CPU core.

Seconds are those of the tools alone: every call really takes ``--latency`` seconds; one agent's calls follow each
other, those of sub-agents overlap. ``latency_ratio`` is one agent's time by the swarm's, in wide searches of 16 parts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from model.codec.chat import ToolCall, encode_chat, render
from model.codec.tokenizer import Tokenizer
from model.data.families.world import DRAWS, FAMILIES, SUBAGENT_PROMPTS, SWARM_TOOLS
from model.data.families.world.agents import Conversation, alone, by_swarm
from model.data.families.world.index import View
from model.data.families.world.tasks import Drawn
from model.data.samples.sample import Sample
from model.rl.tools.toolset import Toolset

SIZES = (2, 4, 8, 16, 32)
RANKS = 2048  # of the tokenizer that is trained here


@dataclass(frozen=True)
class Cost:
    """Of one task.

    Attributes:
        parts: how many there are.
        calls: of one agent.
        single_tokens, main_tokens, sub_tokens: of the whole conversation of one agent, of the orchestrator, and of the
            sub-agent with the longest one.
        single_steps, swarm_steps: critical steps.
    """

    parts: int
    calls: int
    single_tokens: int
    main_tokens: int
    sub_tokens: int
    single_steps: int
    swarm_steps: int


def cost(drawn: Drawn, view: View, tokenizer: Tokenizer) -> tuple[Cost, Conversation, list[Conversation]]:
    """The cost of a task, and the conversations of one agent and of the sub-agents."""
    single, text = alone(drawn.plan, view)
    main, _, subs = by_swarm(drawn.plan, view, "finder", SUBAGENT_PROMPTS[0])
    longest = max(range(len(subs)), key=lambda n: subs[n].calls)
    assignments, results = main.turns[-len(subs) - 1], main.turns[-len(subs) :]

    def tokens(talk: Conversation, question: str, answer: str, tools: list[str], system: Sequence[str] = ()) -> int:
        opening = [{"role": "system", "content": each} for each in system] + [{"role": "user", "content": question}]
        return len(encode_chat([*opening, *talk.turns, {"role": "assistant", "content": answer}], tools, tokenizer).ids)

    part = assignments["tool_calls"][longest]["arguments"]["prompt"]
    sub_tokens = tokens(subs[longest], part, results[longest]["content"], drawn.tools, SUBAGENT_PROMPTS[:1])
    direct = main.calls - 1 - len(subs)  # those before the swarm was made
    found = Cost(
        parts=len(subs),
        calls=single.calls,
        single_tokens=tokens(single, drawn.question, text, drawn.tools),
        main_tokens=tokens(main, drawn.question, text, [*drawn.tools, *SWARM_TOOLS]),
        sub_tokens=sub_tokens,
        single_steps=single.calls + 1,
        swarm_steps=direct + 1 + 1 + (subs[longest].calls + 1) + 1,
    )
    return found, single, subs


async def seconds(toolset: Toolset, tools: list[str], talks: Sequence[Conversation]) -> float:
    """How long the calls of conversations take that run at the same time."""
    sample = Sample("k", "world", "agentic", "text", "s", tools=tools, environment={"world": {}})

    async def replay(talk: Conversation) -> None:
        async with toolset.episode(sample) as episode:
            shown = [turn["content"] for turn in talk.turns if turn["role"] == "tool"]
            calls = [call for turn in talk.turns for call in turn.get("tool_calls", [])]
            for call, expected in zip(calls, shown, strict=True):
                if await episode.call(ToolCall("i", call["name"], call["arguments"])) != expected:
                    raise RuntimeError(f"an episode shows something else than the trajectory of {call}")

    start = time.monotonic()
    await asyncio.gather(*map(replay, talks))
    return time.monotonic() - start


def trained() -> Tokenizer:
    samples = [family.sample(1, "train", index) for family in FAMILIES for index in range(6)]
    texts = (part.text for sample in samples for part in render(sample.messages, sample.tools) if part.kind == "text")
    return Tokenizer.train(list(texts), ranks=RANKS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--tokenizer", type=Path, help="a folder with a tokenizer; without it, one is trained here")
    parser.add_argument("--samples", type=int, default=6, help="held-out tasks per row")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds that every call takes")
    arguments = parser.parse_args()
    view = View()
    tokenizer = Tokenizer.load(arguments.tokenizer) if arguments.tokenizer else trained()
    figures: dict[str, dict[str, float]] = {}
    ratios: list[float] = []
    print("| family | parts | calls a part | one agent: steps | tokens | swarm: steps | tokens | longest sub-agent |")
    print("|---|---|---|---|---|---|---|---|")
    with Toolset(latency=dict.fromkeys(("search", "open_page"), arguments.latency)) as toolset:
        for name, draw in DRAWS.items():
            for size in (1,) if name == "world_easy" else SIZES:
                costs = []
                for index in range(arguments.samples):
                    drawn = draw(np.random.default_rng([size, index]), "eval", size, view)
                    found, single, subs = cost(drawn, view, tokenizer)
                    costs.append(found)
                    if (name, size) == ("world_wide", 16):
                        one = asyncio.run(seconds(toolset, drawn.tools, [single]))
                        ratios.append(one / asyncio.run(seconds(toolset, drawn.tools, subs)))
                row = {key: mean(getattr(each, key) for each in costs) for key in Cost.__dataclass_fields__}
                figures[f"{name}_{size}"] = {key: round(value, 1) for key, value in row.items()}
                print(
                    f"| `{name}` | {row['parts']:.0f} | {row['calls'] / row['parts']:.1f} "
                    f"| {row['single_steps']:.0f} | {row['single_tokens']:.0f} "
                    f"| {row['swarm_steps']:.0f} | {row['main_tokens']:.0f} | {row['sub_tokens']:.0f} |"
                )
    print(f"latency_ratio: {mean(ratios):.1f}, from {min(ratios):.1f} to {max(ratios):.1f}")
    if arguments.json:
        print(json.dumps({"latency_ratio": round(mean(ratios), 2), "costs": figures}))


if __name__ == "__main__":
    main()
