"""The baselines of a swarm, played in the world by scripted agents that know no more than their context shows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.families.world import DRAWS
from model.data.families.world.index import View
from model.data.families.world.tasks import Drawn
from model.data.samples.sample import Sample
from model.rl.environment import Episode
from model.rl.tools.toolset import Toolset
from model.rollout.protocol import Completion, Request
from model.swarm.baselines import DISCARDED, HIDDEN, Mode
from model.swarm.orchestrator import SwarmLimits, run_swarm_episode
from model.swarm.scripted import ScriptedOrchestrator, ScriptedSingle, ScriptedSubAgents, Worked

WIDE = 4000  # a window that holds every task here
Play = Callable[..., Episode]


def task(name: str, size: int) -> tuple[Drawn, Sample]:
    drawn = DRAWS[name](np.random.default_rng([size, 1]), "eval", size, View())
    return drawn, Sample(
        "k", name, "agentic", "text", "s", messages=[{"role": "user", "content": drawn.question}],
        tools=drawn.tools, answer=drawn.answer, reward=drawn.reward, environment={"world": {}, "parts": drawn.size},
    )  # fmt: skip


class Counting:
    """An engine that is given weights before each completion, and counts that."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.version = engine, 0

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.version += 1
        found = await self.engine.generate(requests)
        return [replace(each, weight_versions=[self.version] * len(each.token_ids)) for each in found]


def versions(episode: Episode) -> list[int]:
    """Those of the completions that its tokens hold; every token has one, and 0 if the policy did not sample it."""
    pairs = list(zip(episode.weight_versions, episode.policy_mask, strict=True))
    assert len(pairs) == len(episode.input_ids) and all((version > 0) == mine for version, mine in pairs)
    return list(dict.fromkeys(version for version, mine in pairs if mine))


@pytest.fixture
def play(tokenizer: Tokenizer, toolset: Toolset) -> Play:
    def run(mode: Mode, name: str = "world_wide", size: int = 4, window: int = WIDE, budget: int = 60, **engines: Any):
        drawn, sample = task(name, size)
        worked = Worked(drawn.plan, View())
        if mode in ("swarm", "must_delegate"):
            engine: Any = ScriptedOrchestrator(worked, tokenizer, **engines)
        else:
            managed = mode != "single"
            engine = ScriptedSingle(worked, tokenizer, budget, window, managed, notes=mode == "hide_tool_result")
        limits = SwarmLimits(budget, 12, max_new_tokens=1200, max_tokens=window, sub_agent_tokens=WIDE)
        return asyncio.run(
            run_swarm_episode(
                Counting(engine), ScriptedSubAgents(worked, tokenizer), tokenizer, sample, ImageConfig(), toolset,
                limits=limits, temperature=1.0, seed=0, mode=mode,
            )
        )  # fmt: skip

    return run


@pytest.mark.parametrize("mode", ["swarm", "must_delegate", "single", "hide_tool_result", "discard_all"])
def test_with_room_every_mode_finds_everything(mode: Mode, play: Play) -> None:
    episode = play(mode)
    assert (episode.finish_reason, episode.reward, episode.failure) == ("answer", 1.0, "")
    assert episode.metrics["parts"] == 4.0 and episode.metrics["context_tokens"] <= WIDE
    delegated = mode in ("swarm", "must_delegate")
    assert episode.metrics["subtasks_finished"] == 4.0 * delegated
    if not delegated:  # one context, that nothing left
        assert episode.metrics["context_tokens"] == episode.metrics["total_tokens"] == len(episode.input_ids)


def test_a_swarm_takes_the_steps_of_its_slowest_sub_agent_and_one_agent_those_of_all(play: Play) -> None:
    parts = Worked(task("world_wide", 4)[0].plan, View()).parts
    alone, swarm = play("single"), play("swarm")
    assert alone.metrics["critical_steps"] == sum(len(part.steps) for part in parts) + 1
    assert swarm.metrics["critical_steps"] == 1 + 1 + max(len(part.steps) + 1 for part in parts) + 1
    assert swarm.metrics["context_tokens"] < alone.metrics["context_tokens"]


@pytest.mark.parametrize("name", ["world_deep", "world_document", "world_bulk"])
def test_the_oracle_split_needs_no_step_to_find_the_parts(name: str, play: Play) -> None:
    found, told = play("swarm", name), play("swarm", name, knows_parts=True)
    assert found.reward == told.reward == 1.0
    begun = len(Worked(task(name, 4)[0].plan, View()).begin)
    assert found.metrics["critical_steps"] - told.metrics["critical_steps"] == begun


def test_an_orchestrator_that_must_delegate_has_no_other_tool(play: Play, tokenizer: Tokenizer) -> None:
    text = tokenizer.decode(play("must_delegate").input_ids)
    assert "assign_task" in text and "open_page" not in text
    assert "open_page" in tokenizer.decode(play("swarm").input_ids)


def small_window(play: Play) -> int:
    """A window that one agent's whole work does not fit into, but a good part of it does."""
    return int(0.75 * play("single").metrics["context_tokens"])


def test_one_agent_whose_window_is_used_up_has_some_of_the_answer(play: Play) -> None:
    window = small_window(play)
    episode = play("single", window=window)
    assert episode.finish_reason == "answer" and 0.3 < episode.reward < 1.0
    assert episode.metrics["context_tokens"] <= window


def test_where_tool_results_are_hidden_the_agent_goes_on_from_its_notes(play: Play, tokenizer: Tokenizer) -> None:
    window = small_window(play)
    episode = play("hide_tool_result", window=window)
    text = tokenizer.decode(episode.input_ids)
    assert (episode.finish_reason, episode.reward) == ("answer", 1.0)
    assert HIDDEN in text and "open_page:" in text.split(HIDDEN)[-1]  # the newest results are there
    assert window / 2 < episode.metrics["context_tokens"] <= window
    assert episode.metrics["total_tokens"] > len(episode.input_ids)
    assert len(episode.policy_mask) == len(episode.logprobs) == len(episode.input_ids)
    assert versions(episode) == list(range(1, episode.turns + 1))
    assert episode.metrics["critical_steps"] == play("single").metrics["critical_steps"]


def test_where_all_is_discarded_the_agent_begins_again_and_the_budget_binds(play: Play, tokenizer: Tokenizer) -> None:
    window = small_window(play)
    episode = play("discard_all", window=window, budget=17)
    text = tokenizer.decode(episode.input_ids)
    drawn, _ = task("world_wide", 4)
    assert text.count(drawn.question) == 1 and f"{DISCARDED}<|im_end|>" in text
    assert episode.metrics["critical_steps"] == 17 and episode.finish_reason == "answer"
    assert 0 < episode.reward < 1 and episode.metrics["total_tokens"] > window
    assert episode.metrics["context_tokens"] <= window
    begun = text.split(DISCARDED)[1]
    assert begun.count("## Return of") < 17 - 1  # what it did before is gone
    left = versions(episode)
    assert 0 < len(left) < episode.turns and left == list(range(episode.turns + 1 - len(left), episode.turns + 1))


def test_a_question_that_fills_the_window_ends_the_episode(play: Play) -> None:
    prompt = play("single").policy_mask.index(True)
    for mode in ("single", "hide_tool_result", "discard_all"):
        episode = play(mode, window=prompt + 5)
        assert (episode.finish_reason, episode.reward) == ("context", 0.0)
