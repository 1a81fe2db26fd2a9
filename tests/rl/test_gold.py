"""What the families write as gold trajectories is, token for token, what the environment would let happen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from model.data.families import FAMILIES
from model.data.sample import Sample
from model.data.tokenize import tokenize
from model.image import ImageConfig
from model.rl.environment import Episode, run_episode
from model.rl.tools.toolset import Toolset
from model.rollout.protocol import Request
from model.swarm.orchestrator import SwarmLimits, run_swarm_episode
from model.tokenizer import Tokenizer


def gold_turns(sample: Sample, tokenizer: Tokenizer) -> list[list[int]]:
    """The gold completions of a task, in order."""
    tokens = tokenize(sample, tokenizer, ImageConfig())
    turns: list[list[int]] = []
    before = False
    for token, mine in zip(tokens.input_ids.tolist(), tokens.loss_mask.tolist(), strict=True):
        if mine and not before:
            turns.append([])
        if mine:
            turns[-1].append(token)
        before = mine
    return turns


def tasks(family: str, split: str, count: int) -> list[Sample]:
    drawn = (FAMILIES[family].sample(0, split, index) for index in range(10 * count))
    return [sample for sample in drawn if sample.reward][:count]


def check(episode: Episode, sample: Sample, tokenizer: Tokenizer) -> None:
    gold = tokenize(sample, tokenizer, ImageConfig())
    assert tokenizer.decode(episode.input_ids) == tokenizer.decode(gold.input_ids.tolist())
    assert episode.input_ids == gold.input_ids.tolist()
    assert episode.policy_mask == gold.loss_mask.tolist()
    assert episode.reward == 1.0 and episode.correct


@pytest.mark.parametrize("split", ["train", "eval"])
@pytest.mark.parametrize(
    "family",
    ["fact_qa", "reasoning_gym", "array_tool", "array_tool_image", "sub_search", "digit_string", "grounding", "chart"],
)
def test_gold_is_rewarded(family: str, split: str, tokenizer: Tokenizer, scripted: Any) -> None:
    async def play(sample: Sample, toolset: Toolset) -> Episode:
        left = gold_turns(sample, tokenizer)
        engine = scripted(lambda request: left.pop(0))
        limits: dict[str, Any] = {"max_turns": 3, "max_new_tokens": 200, "max_tokens": 600}
        return await run_episode(engine, tokenizer, sample, ImageConfig(), toolset, temperature=1.0, seed=0, **limits)

    with Toolset() as toolset:
        for sample in tasks(family, split, 6):
            check(asyncio.run(play(sample, toolset)), sample, tokenizer)


def sub_agent(sample: Sample, tokenizer: Tokenizer, speak: Callable[..., list[int]]) -> Callable[[Request], list[int]]:
    """A sub-agent that searches for exactly what it is told, then repeats the result."""

    def script(request: Request) -> list[int]:
        text = tokenizer.decode(request.input_ids)
        query = text.split("<|im_user|>user<|im_middle|>")[1].split("<|im_end|>")[0]
        value = sample.environment["records"][query.lower()]
        return speak(value) if "## Return of" in text else speak("", [("search", {"query": query})])

    return script


@pytest.mark.parametrize("split", ["train", "eval"])
def test_gold_swarms_are_rewarded(split: str, tokenizer: Tokenizer, scripted: Any, speak: Any) -> None:
    async def play(sample: Sample, toolset: Toolset) -> Episode:
        left = gold_turns(sample, tokenizer)
        return await run_swarm_episode(
            scripted(lambda request: left.pop(0)), scripted(sub_agent(sample, tokenizer, speak)), tokenizer, sample,
            ImageConfig(), toolset, limits=SwarmLimits(6, max_new_tokens=300, max_tokens=1000), temperature=1.0, seed=0,
            swarm="assign_task" in sample.tools,
        )  # fmt: skip

    modes = set()
    with Toolset() as toolset:
        for sample in tasks("wide_search", split, 12):
            episode = asyncio.run(play(sample, toolset))
            check(episode, sample, tokenizer)
            modes.add(episode.metrics["parallelism"] > 0)
            items = len(sample.answer)
            # create, assign + 2 steps of a sub-agent, answer; or one search per item and the answer
            assert episode.metrics["critical_steps"] == (5 if episode.metrics["parallelism"] else items + 1)
    assert modes == {True, False}
