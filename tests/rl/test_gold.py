"""The gold trajectories of the task families are, token for token, what the environment produces for these turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.families import FAMILIES
from model.data.samples.sample import Sample
from model.data.samples.tokenize import tokenize
from model.rl.environment import Episode, run_episode
from model.rl.tools.toolset import Toolset
from model.rollout.protocol import Request
from model.swarm.orchestrator import SwarmLimits, run_swarm_episode


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
    [
        "fact_qa",
        "reasoning_gym",
        "array_tool",
        "array_tool_image",
        "sub_search",
        "digit_string",
        "grounding",
        "chart",
        "judge_pair",
        "judge_rubric",
        "judge_list",
        "open_answer",
    ],
)
def test_gold_is_rewarded(family: str, split: str, tokenizer: Tokenizer, scripted: Any) -> None:
    async def play(sample: Sample, toolset: Toolset) -> Episode:
        engine = scripted.saying(*gold_turns(sample, tokenizer))
        limits: dict[str, Any] = {"max_turns": 3, "max_new_tokens": 200, "max_tokens": 600}
        return await run_episode(engine, tokenizer, sample, ImageConfig(), toolset, temperature=1.0, seed=0, **limits)

    with Toolset() as toolset:
        for sample in tasks(family, split, 6):
            check(asyncio.run(play(sample, toolset)), sample, tokenizer)


@pytest.mark.parametrize("split", ["train", "eval"])
@pytest.mark.parametrize("family", ["image_program", "image_program_image"])
def test_gold_programs_of_several_cells_are_rewarded(
    family: str, split: str, tokenizer: Tokenizer, scripted: Any
) -> None:
    """One of each kind. A wrong cell is no gold: the loss leaves it out, so the policy would not write it."""

    async def play(sample: Sample, toolset: Toolset) -> Episode:
        engine = scripted.saying(*gold_turns(sample, tokenizer))
        limits: dict[str, Any] = {"max_turns": 4, "max_new_tokens": 240, "max_tokens": 800}
        return await run_episode(engine, tokenizer, sample, ImageConfig(), toolset, temperature=1.0, seed=0, **limits)

    played: dict[str, int] = {}
    with Toolset() as toolset:
        for sample in tasks(family, split, 150):
            kind = sample.key.split("-")[1]
            if kind not in played and all(turn.get("loss", True) for turn in sample.messages):
                episode = asyncio.run(play(sample, toolset))
                check(episode, sample, tokenizer)
                played[kind] = episode.turns
    kinds = 15 if split == "eval" else 12  # training never shows three of them
    assert len(played) == kinds and set(played.values()) <= {2, 3, 4} and len(set(played.values())) > 1


@pytest.mark.parametrize("split", ["train", "eval"])
@pytest.mark.parametrize(("family", "kinds", "turns"), [
    ("thinking", 12, {1}), ("coding", 16, {2}), ("dialogue", 10, {3, 4, 5}),
])  # fmt: skip
def test_gold_thinking_functions_and_dialogues_are_rewarded(
    family: str, kinds: int, turns: set[int], split: str, tokenizer: Tokenizer, scripted: Any
) -> None:
    """One of each kind. Thinking is sampled after its mark, and a dialogue's user says what stands in the sample."""

    async def play(sample: Sample, toolset: Toolset) -> Episode:
        engine = scripted.saying(*gold_turns(sample, tokenizer))
        limits: dict[str, Any] = {"max_turns": 7, "max_new_tokens": 300, "max_tokens": 1200}
        return await run_episode(engine, tokenizer, sample, ImageConfig(), toolset, temperature=1.0, seed=0, **limits)

    played: dict[str, int] = {}
    with Toolset() as toolset:
        for index in range(200 * kinds):  # the trajectories of some kinds start with a mistake nearly always
            sample = FAMILIES[family].sample(0, split, index)
            kind = sample.key.split("-")[1]
            if sample.reward and kind not in played and all(turn.get("loss", True) for turn in sample.messages):
                episode = asyncio.run(play(sample, toolset))
                check(episode, sample, tokenizer)
                played[kind] = episode.turns
            if len(played) == kinds:
                break
    assert len(played) == kinds and set(played.values()) == turns


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
        return await run_swarm_episode(
            scripted.saying(*gold_turns(sample, tokenizer)), scripted(sub_agent(sample, tokenizer, speak)),
            tokenizer, sample, ImageConfig(), toolset, limits=SwarmLimits(6, max_new_tokens=300, max_tokens=1000),
            temperature=1.0, seed=0, mode="swarm" if "assign_task" in sample.tools else "single",
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
