"""Episodes in the world observe what its reference trajectories show, token for token; calls may take time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from model.boundary.errors import MoonflowError
from model.codec.chat import ToolCall
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.families.world import DRAWS, world_family
from model.data.families.world.agents import by_swarm
from model.data.families.world.index import View, world
from model.data.samples.sample import Sample
from model.rl.environment import run_episode
from model.rl.tools.toolset import Toolset
from model.rollout.protocol import Request
from model.swarm.orchestrator import SwarmLimits, run_swarm_episode
from tests.rl.test_gold import check, gold_turns

TASK = Sample(
    key="k", family="world_wide", ability="agentic", modality="text", source="s", environment={"world": {}},
    tools=["search", "open_page", "download", "ipython"],
)  # fmt: skip


def called(toolset: Toolset, *calls: tuple[str, dict[str, str]], task: Sample = TASK) -> list[str]:
    async def run() -> list[str]:
        async with toolset.episode(task) as tools:
            return [await tools.call(ToolCall("i", name, arguments)) for name, arguments in calls]

    return asyncio.run(run())


def alone_in(name: str) -> Sample:
    family = world_family(name, (2,))
    drawn = (family.sample(0, "eval", index) for index in range(50))
    return next(sample for sample in drawn if sample.environment["mode"] == "single")


@pytest.mark.parametrize("name", DRAWS)
def test_a_single_agents_gold_is_what_the_environment_gives(
    name: str, tokenizer: Tokenizer, scripted: Any, toolset: Toolset
) -> None:
    sample = alone_in(name)
    engine = scripted.saying(*gold_turns(sample, tokenizer))
    limits: dict[str, Any] = {"max_turns": 30, "max_new_tokens": 600, "max_tokens": 9000}
    episode = asyncio.run(
        run_episode(engine, tokenizer, sample, ImageConfig(), toolset, temperature=1.0, seed=0, **limits)
    )
    check(episode, sample, tokenizer)


def test_a_swarm_in_the_world_has_its_tools_and_its_notebooks(
    tokenizer: Tokenizer, scripted: Any, speak: Callable[..., list[int]], toolset: Toolset
) -> None:
    """A bulk download: each sub-agent has the files that it downloaded."""
    drawn = DRAWS["world_bulk"](np.random.default_rng(3), "eval", 2, View())
    talk, text, subs = by_swarm(drawn.plan, View(), "finder", "Look it up.")
    prompt = {"role": "user", "content": drawn.question}
    sample = replace(
        TASK, messages=[prompt, *talk.turns, {"role": "assistant", "content": text}], answer=drawn.answer,
        reward=drawn.reward, tools=[*drawn.tools, "create_subagent", "assign_task"],
    )  # fmt: skip
    asked = [call["arguments"]["prompt"] for call in talk.turns[2]["tool_calls"]]
    told = [turn["content"] for turn in talk.turns[3:]]

    def script(request: Request) -> list[int]:
        seen = tokenizer.decode(request.input_ids)
        part = next(n for n, each in enumerate(asked) if each in seen)
        spoken = [turn for turn in subs[part].turns if turn["role"] == "assistant"]
        done = seen.count("## Return of")
        if done == len(spoken):
            return speak(told[part])
        (call,) = spoken[done]["tool_calls"]
        return speak("", [(call["name"], call["arguments"])], first=done)

    engine, sub_engine = scripted.saying(*gold_turns(sample, tokenizer)), scripted(script)
    episode = asyncio.run(
        run_swarm_episode(
            engine,
            sub_engine,
            tokenizer,
            sample,
            ImageConfig(),
            toolset,
            temperature=1.0,
            seed=0,
            limits=SwarmLimits(30, 12, max_new_tokens=600, max_tokens=9000),
        )  # fmt: skip
    )
    check(episode, sample, tokenizer)
    longest = max(sum(turn["role"] == "assistant" for turn in sub.turns) for sub in subs) + 1
    assert episode.metrics["critical_steps"] == 1 + 1 + longest + 1


def test_what_was_downloaded_is_in_the_notebook_whatever_a_program_did(toolset: Toolset) -> None:
    first, second = sorted(world().library.files)[:2]
    shown = called(
        toolset, ("download", {"file": first}), ("ipython", {"code": f"print(files['{first}'][:11]); files = 3"}),
        ("download", {"file": f" {second} "}), ("ipython", {"code": "sorted(files)"}),
    )  # fmt: skip
    assert shown[0] == f"files['{first}'] has {len(world().file(first) or '')} characters"
    assert shown[1] == "name,people" and shown[3] == str([first, second])


def test_bad_arguments_are_observations(toolset: Toolset) -> None:
    shown = called(
        toolset, ("open_page", {"page": "Peru", "window": "1"}), ("open_page", {"page": "1"}),
        ("search", {"query": "?"}), ("download", {"file": "../secret"}),
    )  # fmt: skip
    assert shown == [
        "error: there is no page Peru; search tells the numbers of pages", "error: open_page takes page, window",
        "error: the query has no word", "error: there is no file ../secret; pages tell the names of files",
    ]  # fmt: skip
    outside = replace(TASK, environment={"records": {"peru capital": "Lima"}})
    assert called(toolset, ("search", {"query": "Peru capital"}), ("download", {"file": "x"}), task=outside) == [
        "Lima", "error: download is not available here",
    ]  # fmt: skip
    with pytest.raises(MoonflowError, match="sample k of world_wide: environment.world.window must be"):
        called(toolset, ("search", {"query": "Peru"}), task=replace(TASK, environment={"world": {"window": 1}}))


def test_latency_is_awaited_by_the_calls_of_its_tool_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    awaited: list[float] = []

    async def sleep(seconds: float) -> None:
        awaited.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with Toolset(latency={"search": 30.0}) as toolset:
        called(toolset, ("search", {"query": "Peru"}), ("open_page", {"page": "1", "window": "1"}), ("search", {}))
    assert awaited == [30.0]


@pytest.mark.parametrize("latency", [{"serch": 1.0}, {"search": -1.0}, {"search": float("nan")}])
def test_a_latency_that_means_nothing_is_refused(latency: dict[str, float]) -> None:
    with pytest.raises(MoonflowError, match="latency"):
        Toolset(latency=latency)
