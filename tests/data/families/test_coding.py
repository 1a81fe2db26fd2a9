"""Functions to write: their values against values by hand, all programs in the real sandbox, what is held out."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from model.codec.chat import ToolCall
from model.data.families.coding import CODING, HIDDEN, KINDS, wrong_versions
from model.data.families.coding.kind import Kind, filled
from model.data.families.family import SPLITS
from model.data.families.programs.session import CellSession
from model.data.samples.sample import Sample, Split
from model.evals.scorer import chance_level
from model.rl.tools.toolset import Toolset
from model.rl.verifier import verify
from tests.samples import make_sample

ALL = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
BY_HAND: dict[str, tuple[dict[str, Any], tuple[Any, ...], Any]] = {
    "above": ({"k": 7}, ([7, 9, 2, 8],), [9, 8]),
    "multiples": ({"k": 4}, ([4, 6, 0, 8, 8],), 4),
    "every": ({"k": 3}, ([5, 6, 7, 8, 9, 1, 2],), [5, 8, 2]),
    "gaps": ({"k": 5}, ([1, 6, 12, 2],), 2),
    "clip": ({"low": 5, "high": 20}, ([1, 5, 13, 20, 28],), [5, 5, 13, 20, 20]),
    "top": ({"k": 3}, ([4, 9, 1, 9, 5],), [9, 9, 5]),
    "first_over": ({"k": 10}, ([3, 10, 11, 30],), 2),
    "scale": ({"a": 3, "b": 4}, ([0, 5],), [4, 19]),
    "digits": ({"d": 7}, (177257,), 3),
    "fizz": ({"a": 3, "b": 7}, (14,), 3 + 6 + 7 + 9 + 12 + 14),
    "divisions": ({"k": 6}, (72,), 2),
    "term": ({"a": 2, "b": 3, "c": 1}, (3,), 67),
    "pad": ({"k": 5, "c": "*"}, ("cat",), "**cat"),
    "shift": ({"k": 3}, ("xyza",), "abcd"),
    "long_words": ({"k": 3}, ("a tree has four hats",), ["tree", "four", "hats"]),
    "stretch": ({"k": 3, "c": "!"}, ("ab",), "aaabbb!"),
}


@pytest.fixture(scope="module")
def toolset() -> Iterator[Toolset]:
    with Toolset() as tools:
        yield tools


def some(split: Split, rounds: int) -> list[Sample]:
    return [CODING.sample(0, split, index) for index in range(rounds * len(KINDS))]


def kind_of(sample: Sample) -> str:
    return sample.key.split("-")[1]


def cells(sample: Sample) -> list[str]:
    return [turn["tool_calls"][0]["arguments"]["code"] for turn in sample.messages if "tool_calls" in turn]


def results(sample: Sample) -> list[str]:
    return [turn["content"] for turn in sample.messages if turn["role"] == "tool"]


@ALL
def test_values_are_those_by_hand(kind: Kind) -> None:
    fields, arguments, value = BY_HAND[kind.name]
    assert fields in kind.parameters
    assert kind.solve(fields, *arguments) == value


@ALL
def test_every_program_passes_in_the_sandbox_and_mistakes_do_not(kind: Kind, toolset: Toolset) -> None:
    """With parameters and arguments of all sizes; the program is the text that a policy would answer with."""
    rng = np.random.default_rng(11)
    assert len(kind.styles) >= 4 and len(kind.wordings) >= 4
    harmless = 0
    for style in kind.styles:
        fields = kind.parameters[int(rng.integers(len(kind.parameters)))]
        drawn = [kind.arguments(rng, fields) for _ in range(25)]
        tests = {kind.applied(arguments): repr(kind.solve(fields, *arguments)) for arguments in drawn}
        task = make_sample(answer=tests, reward="tests")
        assert asyncio.run(verify(task, filled(style, fields), toolset)) == 1.0, style
        wrong = [filled(each, fields) for each in wrong_versions(rng, kind, style)]
        assert len(wrong) >= 4
        harmless += sum(asyncio.run(verify(task, each, toolset)) == 1.0 for each in wrong[:3])
    assert harmless <= 4


@pytest.mark.parametrize("split", SPLITS)
def test_the_tool_shows_what_the_trajectory_says(split: Split, toolset: Toolset) -> None:
    async def replay(sample: Sample) -> list[str]:
        async with toolset.episode(sample) as tools:
            calls = [
                ToolCall(f"functions.ipython:{n}", "ipython", {"code": cell}) for n, cell in enumerate(cells(sample))
            ]
            return [await tools.call(call) for call in calls]

    samples = some(split, 6)
    assert [asyncio.run(replay(sample)) for sample in samples] == [results(sample) for sample in samples]
    assert {kind_of(sample) for sample in samples} == set(BY_HAND)


def test_the_reply_is_the_function_that_the_last_cell_tried_on_the_examples(toolset: Toolset) -> None:
    for sample in some("eval", 3):
        program, examples = sample.messages[-1]["content"], sample.messages[0]["content"].split("\n")[1:]
        calls, values = zip(*(example.split(" == ") for example in examples), strict=True)
        assert cells(sample)[-1] == f"{program}\nprint({', '.join(calls)})"
        assert results(sample)[-1] == " ".join(value.strip("'") for value in values)
        assert len(sample.answer) == HIDDEN and not set(sample.answer) & set(calls)
        assert len(set(sample.answer.values())) > 1 and len(set(values)) > 1
        assert asyncio.run(verify(sample, program, toolset)) == 1.0


def test_a_quarter_starts_with_a_mistake_that_shows_and_is_not_trained_on() -> None:
    samples, mistakes = some("train", 40), Counter[str]()
    for sample in samples:
        turns = [turn for turn in sample.messages if "tool_calls" in turn]
        assert [turn.get("loss", True) for turn in turns] == [False, True][-len(turns) :]
        if len(turns) == 2:
            assert results(sample)[0] != results(sample)[1] and "0x" not in results(sample)[0]
            last = results(sample)[0].split("\n")[-1]
            mistakes[last.split(":")[0] if "Error" in last else "value"] += 1
    assert 0.2 < mistakes.total() / len(samples) < 0.33
    assert {"value", "SyntaxError", "NameError", "IndentationError", "TypeError"} <= set(mistakes)


def test_parameters_wordings_and_styles_are_held_out() -> None:
    train, held_out = (set(CODING.sources(split)) for split in SPLITS)
    for kind in KINDS:
        of_kind = [{source for source in part if source.startswith(f"{kind.name}/")} for part in (train, held_out)]
        assert of_kind[1] and len(of_kind[0]) + len(of_kind[1]) == len(kind.parameters)
    names = {"train": set[str](), "eval": set[str]()}
    for split in SPLITS:
        for sample in some(split, 30):
            (kind,) = [kind for kind in KINDS if kind.name == kind_of(sample)]
            pairs = sample.source.partition("/")[2].split(",")
            fields = {name: value for name, _, value in (pair.partition("=") for pair in pairs)}
            for label, options, text in (
                ("wording", kind.wordings, sample.messages[0]["content"]),
                ("style", kind.styles, sample.messages[-1]["content"]),
            ):
                found = [number for number, option in enumerate(options) if filled(option, fields) in text]
                names[split] |= {f"{label} {number}" for number in found[-1:]}
    everything = {f"wording {number}" for number in range(6)} | {f"style {number}" for number in range(4)}
    assert names["eval"] == everything and names["train"] == everything - {"wording 5", "style 3"}


def test_chance_is_measured_and_low(toolset: Toolset) -> None:
    assert 0.0 < asyncio.run(chance_level(some("eval", 1), toolset)) < 0.25


def test_a_program_that_finds_something_else_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CellSession, "run", lambda self, cell: ("-1", False))
    with pytest.raises(RuntimeError, match="this program prints '-1'"):
        CODING.sample(0, "train", 0)
