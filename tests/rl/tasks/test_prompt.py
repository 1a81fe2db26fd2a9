"""A user's prompt becomes a sample that is read, written and shown as any other; a bad one is one line."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.boundary.errors import MoonflowError
from model.codec.image import ImageConfig, read_pixels
from model.data.samples.shards import Shard, write_shard
from model.data.samples.tokenize import tokenize_prompt
from model.rl.tasks.prompt import as_sample, as_verdict
from model.rl.tasks.task import About, TaskSample
from model.rl.tools.toolset import environment_array
from tests.tiny_folders import tiny_tokenizer

ABOUT = About("coding", {"train": None, "eval": None}, 32, None, 10.0, None)
RNG = np.random.default_rng(0)
GREY, COLOUR = RNG.integers(0, 256, (28, 42), np.uint8), RNG.integers(0, 256, (28, 42, 3), np.uint8)


def made(**fields: Any) -> TaskSample:
    return as_sample("a.b:Stars", ABOUT, {"messages": asking("why?"), **fields}, 3, "train", 7)


def asking(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": list(content)}]


def test_images_of_every_kind_are_shown_and_given_to_programs_with_their_pixels() -> None:
    buffer = io.BytesIO()
    Image.fromarray(COLOUR).save(buffer, "webp", lossless=True)
    sample = made(
        messages=asking(GREY, "and", Image.fromarray(COLOUR), buffer.getvalue()), tools=["ipython"],
        environment={"images": [COLOUR, Image.fromarray(COLOUR)]},
    )  # fmt: skip
    names = [part["media"] for part in sample.messages[1]["content"] if part["type"] == "image"]
    for name, pixels in zip(names, (GREY, COLOUR, COLOUR), strict=True):
        np.testing.assert_array_equal(read_pixels(sample.media[name]), pixels)
    np.testing.assert_array_equal(environment_array(sample), np.stack([COLOUR, COLOUR]))
    assert len(tokenize_prompt(sample, tiny_tokenizer(), ImageConfig()).grid_thws) == 3
    assert (sample.modality, sample.ability, sample.max_new_tokens, sample.max_turns) == ("image", "coding", 32, 4)


def test_the_picture_that_is_shown_and_that_of_the_programs_are_one() -> None:
    sample = made(messages=asking(GREY, "how many?"), environment={"array": GREY})
    assert list(sample.media) == ["0.image"]
    np.testing.assert_array_equal(environment_array(sample), GREY)


def test_a_sample_of_a_task_can_be_kept_in_a_shard() -> None:
    sample = made(messages=asking(GREY), answer={"a": 1}, rubric="Be exact.", environment={"records": {"a": "b"}})
    (kept,) = [Shard(io.BytesIO(write_shard([sample])), "s")[0]]
    assert (kept.messages, kept.media, kept.answer, kept.rubric) == (
        sample.messages,
        sample.media,
        {"a": 1},
        "Be exact.",
    )
    assert kept.environment == {"records": {"a": "b"}} and made().max_turns == 1 and made().modality == "text"


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        (None, "the prompt is None: give a dictionary of messages, answer"),
        ({"message": []}, "unknown key 'message'; did you mean messages"),
        ({}, "messages is None: give a list"),
        ({"messages": []}, "nothing is asked"),
        ({"messages": ["why?"]}, "messages.0 is of type str: give a dictionary of role, content"),
        ({"messages": [{"role": "assistant", "content": "4"}]}, "a prompt has turns of system and user"),
        ({"messages": asking(3)}, "messages.1.content.0: it is of type int: give an image"),
        ({"messages": asking(b"GIF")}, "messages.1.content.0: "),
        ({"messages": asking(GREY / 255)}, r"the array is float64 \[28, 42\]: give uint8"),
        ({"messages": asking("a"), "tools": ["browser"]}, "there is no tool 'browser'; choose from ipython, search"),
        ({"messages": asking("a"), "tools": "ipython"}, "tools is of type str: give a list"),
        ({"messages": asking("a"), "answer": {1, 2}}, "answer: JSON cannot hold it"),
        ({"messages": asking("a"), "answer": float("inf")}, "answer: JSON cannot hold it"),
        ({"messages": asking("a"), "rubric": 3}, "rubric is of type int"),
        ({"messages": asking("a"), "environment": {"arry": GREY}}, "did you mean array"),
        ({"messages": asking("a"), "environment": {"array": [[1]]}}, "environment.array: it is of type list"),
        ({"messages": asking("a"), "environment": {"records": {"a": 1}}}, "no dictionary of texts"),
    ],
)
def test_a_bad_prompt_is_one_line(prompt: Any, told: str) -> None:
    with pytest.raises(MoonflowError, match=told) as caught:
        as_sample("a.b:Stars", ABOUT, prompt, 0, "train", 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("found", [0, 1, True, 0.5, np.float32(0.5), np.bool_(True)])
def test_a_score_is_any_number_from_0_to_1(found: Any) -> None:
    assert as_verdict(found) == {"score": float(found)}


def test_a_score_has_parts() -> None:
    assert as_verdict({"score": 0.5, "length": 12, "right": False}) == {"score": 0.5, "length": 12.0, "right": 0.0}


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (1.01, "the score 1.01: scores go from 0 to 1"),
        (-1, "the score -1: scores go"),
        (float("nan"), "nan as score: return a finite number"),
        (None, "None as score: return a number"),
        ("1", "of type str as score"),
        ({"right": 1.0}, "no 'score' among its parts right"),
        ({}, r"no 'score' among its parts \(none\)"),
        ({"score": 1.0, "right": float("inf")}, "inf as right"),
        ({"score": 1.0, "a/b": 0.0}, "named a part 'a/b'"),
    ],
)
def test_a_bad_verdict_is_one_line(found: Any, told: str) -> None:
    with pytest.raises(MoonflowError, match=told):
        as_verdict(found)
