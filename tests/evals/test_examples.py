from __future__ import annotations

import asyncio
import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from model.boundary.untrusted_text import cut
from model.codec.image import ImageConfig, encode_png, read_pixels
from model.codec.tokenizer import Tokenizer
from model.codec.video import decode_video
from model.evals.examples import ANSWER, QUESTION, TURN, TURNS, Turn, describe_attempt, describe_task, small_png
from model.evals.scorer import Evaluation
from model.evals.suites import SUITES
from model.rl.tools.toolset import Toolset
from tests.evals.reciter import Reciter, teach
from tests.samples import make_episode, make_sample
from tests.tiny_folders import eval_samples

IMAGES = ImageConfig()


def pixels_of(picture: str) -> np.ndarray:
    """Of a grey picture, one channel of the three that are alike."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"))


@pytest.mark.parametrize("name", ["array_tool", "sub_search", "image_program"])
def test_the_turns_of_a_reference_trajectory_are_read_back_from_its_tokens(name: str, tokenizer: Tokenizer) -> None:
    suite, engine, samples = SUITES[name], Reciter(), eval_samples(name, 2)
    for sample in samples:
        teach(engine, replace(sample, messages=[{**m, "loss": True} for m in sample.messages]), tokenizer)
    with Toolset() as toolset:
        evaluation = Evaluation(tokenizer, IMAGES, toolset, temperature=0.0, seed=0)
        found = asyncio.run(evaluation.episodes(engine, engine, {name: samples}, [suite], 4096))[name]
    for sample, episode in zip(samples, found, strict=True):
        wanted = []
        for message in sample.messages[1:-1]:
            for call in message.get("tool_calls", ()):
                (text,) = call["arguments"].values()
                wanted.append(Turn("calls", cut(text, TURN), call["name"]))
            if message["role"] == "tool":
                wanted.append(Turn("returns", cut(message["content"], TURN)))
        attempt = describe_attempt(sample, episode, tokenizer)
        assert attempt.turns == wanted and wanted, episode
        assert (attempt.response, attempt.ended, attempt.score) == (str(sample.answer), "answer", 1.0)


def test_what_is_no_message_is_shown_as_text_and_what_is_too_much_is_cut(tokenizer: Tokenizer) -> None:
    sample = make_sample(answer=3, reward="number")
    spoken = [tokenizer.token_id("<|tool_call_begin|>"), *tokenizer.encode("<b>" + "x" * 900)]
    returned = [
        tokenizer.token_id("<|im_system|>"), *tokenizer.encode("tool"), tokenizer.token_id("<|im_middle|>"),
        *tokenizer.encode("## Return of functions.ipython:0\nseven"), tokenizer.im_end_id,
        tokenizer.token_id("<|im_assistant|>"), *tokenizer.encode("assistant"), tokenizer.token_id("<|im_middle|>"),
    ]  # fmt: skip
    ids, mask = [1], [False]
    for _ in range(TURNS):
        ids += spoken + returned
        mask += [True] * len(spoken) + [False] * len(returned)
    episode = make_episode(input_ids=ids, policy_mask=mask, logprobs=[0.0] * len(ids), finish_reason="turns")
    attempt = describe_attempt(sample, episode, tokenizer)
    assert [turn.role for turn in attempt.turns] == ["says", "returns"] * (TURNS // 2) and attempt.more == TURNS
    assert attempt.turns[0].text.startswith("<|tool_call_begin|><b>xxx") and len(attempt.turns[0].text) <= TURN + 3
    assert attempt.turns[1].text == "seven"
    assert (attempt.response, attempt.ended, attempt.score) == ("", "turns", 0.0)


def test_an_episode_that_broke_says_why(tokenizer: Tokenizer) -> None:
    episode = make_episode(input_ids=[], policy_mask=[], finish_reason="failed", failure="f/k: the engine\x1b gave up")
    attempt = describe_attempt(make_sample(answer=3, reward="number"), episode, tokenizer)
    assert (attempt.turns, attempt.ended, attempt.failure) == ([], "failed", "f/k: the engine? gave up")


def test_a_picture_keeps_its_pixels_if_it_has_few_colours() -> None:
    sample = eval_samples("chart", 1)[0]
    task = describe_task(sample, IMAGES)
    assert (task.frames, task.shown, task.problem, task.answer) == (1, True, "", str(sample.answer))
    wanted = read_pixels(sample.media["png"])
    assert len(np.unique(wanted.reshape(-1, 3), axis=0)) <= 64
    np.testing.assert_array_equal(pixels_of(task.pictures[0]), wanted)


def test_a_video_shows_its_first_middle_and_last_frame() -> None:
    sample = eval_samples("video_digits", 1)[0]
    task = describe_task(sample, IMAGES)
    frames = decode_video(sample.media["mp4"], IMAGES)[0].astype(int)
    assert task.frames == len(frames) > 3 and len(task.pictures) == 3
    for picture, wanted in zip(task.pictures, frames[[0, len(frames) // 2, -1]], strict=True):
        assert np.abs(pixels_of(picture).astype(int) - wanted).mean() < 4, "64 colours of a grey video"


def test_the_pixels_of_a_text_task_are_those_that_its_programs_see() -> None:
    for sample in eval_samples("image_program", 15):
        task = describe_task(sample, IMAGES)
        seen = [sample.environment["array"]] if "array" in sample.environment else sample.environment["images"]
        assert not task.shown and task.frames == len(seen) and task.pictures
        picture, first = pixels_of(task.pictures[0]).astype(int), np.asarray(seen[0])
        wanted = first if first.ndim == 3 else first[..., None].repeat(3, 2)
        assert picture.shape == wanted.shape and np.abs(picture - wanted).mean() < 4, sample.key


def test_a_document_asks_with_all_but_its_end() -> None:
    suite = SUITES["needle"]
    sample = suite.task(eval_samples("needle", 3)[2])
    task = describe_task(sample, IMAGES)
    assert task.question.startswith(sample.segments[0]["text"].strip()[:50]) and len(task.question) <= QUESTION + 3
    assert task.question.endswith(sample.segments[-2]["text"].strip()[-20:]) and task.answer == sample.answer
    assert not task.pictures and task.frames == 0


@pytest.mark.parametrize("media", [{}, {"png": b"no picture"}])
def test_a_picture_that_cannot_be_read_is_told_in_one_line(media: dict[str, bytes]) -> None:
    content = [{"type": "image", "media": "png"}, {"type": "text", "text": "How many?"}]
    task = describe_task(make_sample(messages=[{"role": "user", "content": content}], answer=3, media=media), IMAGES)
    assert (task.question, task.pictures) == ("How many?", []) and task.problem and "\n" not in task.problem


@pytest.mark.parametrize("shape", [(300, 200, 3), (9, 900, 3), (64, 128)])
@pytest.mark.parametrize("most", [6000, 2000, 300])
def test_any_picture_fits_into_its_bytes(shape: tuple[int, ...], most: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    png = small_png(noise, most)
    assert len(png) <= most < len(encode_png(noise)) and Image.open(io.BytesIO(png)).format == "PNG"


def test_texts_are_cut_in_the_middle_and_have_no_character_that_nobody_sees() -> None:
    assert cut("a\n\tb ok", 20) == "a\n\tb ok"
    assert cut("\u202egnp.exe\x00 \ud83d", 20) == "\ufffdgnp.exe\ufffd \ufffd"
    text = cut("first" + "." * 1000 + "last", ANSWER)
    assert text.startswith("first") and text.endswith("last") and len(text) <= ANSWER + 3
