from __future__ import annotations

import asyncio
import re

import pytest

from model.codec.chat import ToolCall
from model.data.families.array_tool import ARRAY_TOOL, ARRAY_TOOL_IMAGE
from model.data.families.family import Family
from model.data.samples.sample import Sample
from model.rl.tools.toolset import Toolset, environment_array

BOTH = pytest.mark.parametrize("family", [ARRAY_TOOL, ARRAY_TOOL_IMAGE], ids=lambda family: family.name)


@BOTH
def test_the_sandbox_prints_what_the_tool_turn_says(family: Family) -> None:
    async def replay(samples: list[Sample]) -> list[str]:
        with Toolset() as toolset:
            results = []
            for sample in samples:
                (call,) = sample.messages[1]["tool_calls"]
                async with toolset.episode(sample) as tools:
                    results.append(await tools.call(ToolCall("functions.ipython:0", call["name"], call["arguments"])))
            return results

    samples = [family.sample(0, "train", index) for index in range(40)]
    results = asyncio.run(replay(samples))
    assert [result.strip() for result in results] == [sample.messages[2]["content"] for sample in samples]
    assert [result.strip() for result in results] == [str(sample.answer) for sample in samples]


@BOTH
def test_one_short_program_that_uses_the_questions_numbers(family: Family) -> None:
    for index in range(300):
        sample = family.sample(0, "eval", index)
        question, turn, result, final = sample.messages
        asked = question["content"] if isinstance(question["content"], str) else question["content"][-1]["text"]
        code = turn["tool_calls"][0]["arguments"]["code"]
        assert len(turn["tool_calls"]) == 1 and len(code) <= 45
        assert set(re.findall(r"\d+", asked)) <= set(re.findall(r"\d+", code))
        assert result["tool_call_id"] == "functions.ipython:0" and result["content"] == final["content"]


def test_the_text_family_never_shows_its_pixels() -> None:
    for index in range(50):
        sample = ARRAY_TOOL.sample(0, "train", index)
        assert not sample.media and isinstance(sample.messages[0]["content"], str)
        assert len(sample.messages[0]["content"]) < 80


def test_the_image_family_shows_the_array_it_asks_about() -> None:
    shapes = set()
    for index in range(50):
        sample = ARRAY_TOOL_IMAGE.sample(0, "train", index)
        assert sample.messages[0]["content"][0] == {"type": "image", "media": "png"}
        array = environment_array(sample)
        assert array is not None and array.max() > 60
        shapes.add(array.shape)
    assert shapes == {(28, 28), (28, 56), (56, 28), (56, 56)}
