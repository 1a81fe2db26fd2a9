from __future__ import annotations

import asyncio
import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.chat import encode_chat
from model.data.sample import Sample
from model.errors import MoonflowError, Unavailable
from model.image import ImageConfig
from model.rl.environment import Episode, derive_seed, run_episode
from model.rl.tools.search import search
from model.rl.tools.toolset import Toolset, environment_array
from model.rollout.protocol import Completion, Request
from model.tokenizer import Tokenizer
from tests.odd_media import blank_png, odd_images

QUESTION = [{"role": "user", "content": "How many pixels are above 4?"}]
ARRAY = {"array": [[0, 5, 9], [1, 2, 7]]}


def task(**fields: Any) -> Sample:
    base: dict[str, Any] = {
        "key": "a-0", "family": "array_tool", "ability": "coding", "modality": "text", "source": "s",
        "messages": QUESTION, "tools": ["ipython"], "answer": 3, "reward": "number", "environment": ARRAY,
    }  # fmt: skip
    return Sample(**{**base, **fields})


@pytest.fixture(scope="module")
def toolset() -> Iterator[Toolset]:
    with Toolset() as tools:
        yield tools


def play(tokenizer: Tokenizer, toolset: Toolset, engine: Any, sample: Sample, **limits: int) -> Episode:
    given = {"max_turns": 3, "max_new_tokens": 100, "seed": 1, **limits}
    return asyncio.run(run_episode(engine, tokenizer, sample, ImageConfig(), toolset, temperature=1.0, **given))


def turns(*scripts: list[int]) -> Callable[[Request], list[int]]:
    left = list(scripts)
    return lambda request: left.pop(0)


def test_an_episode_is_token_for_token_the_rendered_conversation(tokenizer, toolset, scripted, speak) -> None:
    call = ("ipython", {"code": "print((img > 4).sum())"})
    first, last = speak("", [call]), speak("3")
    episode = play(tokenizer, toolset, scripted(turns(first, last)), task())
    whole = encode_chat(
        [*QUESTION, {"role": "assistant", "content": "", "tool_calls": [{"name": call[0], "arguments": call[1]}]},
         {"role": "tool", "tool_call_id": "functions.ipython:0", "content": "3"},
         {"role": "assistant", "content": "3"}],
        ["ipython"], tokenizer,
    )  # fmt: skip
    assert episode.input_ids == whole.ids
    assert episode.policy_mask == whole.loss
    assert (episode.reward, episode.correct, episode.response, episode.turns) == (1.0, True, "3", 2)
    assert episode.finish_reason == "answer" and episode.metrics == {"tool_calls": 1.0}


def test_logprobs_belong_to_the_sampled_tokens(tokenizer, toolset, scripted, speak) -> None:
    first, last = speak("", [("ipython", {"code": "1"})]), speak("3")
    episode = play(tokenizer, toolset, scripted(turns(first, last)), task())
    assert episode.policy_logprobs == [-n / 100 for n in range(len(first))] + [-n / 100 for n in range(len(last))]
    assert all(value == 0 for value, mine in zip(episode.logprobs, episode.policy_mask, strict=True) if not mine)
    assert [t for t, mine in zip(episode.input_ids, episode.policy_mask, strict=True) if mine] == first + last


def test_each_turn_has_its_own_seed_and_the_prompt_so_far(tokenizer, toolset, scripted, speak) -> None:
    engine = scripted(turns(speak("", [("ipython", {"code": "1"})]), speak("3")))
    episode = play(tokenizer, toolset, engine, task())
    assert [request.seed for request in engine.requests] == [derive_seed(1, 0), derive_seed(1, 1)]
    second = engine.requests[1].input_ids
    assert episode.input_ids[: len(second)] == second
    assert engine.requests[0].stop_token_ids == (tokenizer.im_end_id,)


def test_a_wrong_answer_earns_its_soft_reward(tokenizer, toolset, scripted, speak) -> None:
    episode = play(tokenizer, toolset, scripted(turns(speak("2"))), task())
    assert episode.reward == pytest.approx(2 / 3) and not episode.correct


def test_bad_calls_are_answered_with_an_error(tokenizer, toolset, scripted, speak) -> None:
    unknown = speak("", [("search", {"query": "x"})])
    wrong = speak("", [("ipython", {"program": "1"})])
    broken = [*speak("", [("ipython", {"code": "1"})])[:-3], tokenizer.im_end_id]
    same_id = speak("", [("ipython", {"code": "1"}), ("ipython", {"code": "2"})])
    second = same_id.index(tokenizer.token_id("<|tool_call_end|>")) + 1
    repeated = [*same_id[:second], *same_id[1:second], *same_id[-2:]]
    engine = scripted(turns(unknown, wrong, broken, repeated, speak("3")))
    episode = play(tokenizer, toolset, engine, task(), max_turns=5)
    text = tokenizer.decode(episode.input_ids)
    for error in ("no tool search", "ipython takes code", "a tool call was not closed", "call ids repeat"):
        assert f"error: {error}" in text
    assert episode.reward == 1.0 and episode.turns == 5


def test_an_episode_without_an_answer_earns_nothing(tokenizer, toolset, scripted, speak) -> None:
    call = speak("", [("ipython", {"code": "1"})])
    out_of_turns = play(tokenizer, toolset, scripted(turns(call, call)), task(), max_turns=2)
    assert (out_of_turns.finish_reason, out_of_turns.reward, out_of_turns.turns) == ("turns", 0.0, 2)
    assert out_of_turns.policy_mask[-1]
    out_of_tokens = play(tokenizer, toolset, scripted(turns([5] * 9)), task(), max_new_tokens=4)
    assert (out_of_tokens.finish_reason, out_of_tokens.reward, out_of_tokens.policy_tokens) == ("length", 0.0, 4)


def test_the_context_bounds_an_episode(tokenizer, toolset, scripted, speak) -> None:
    chatter = speak("", [("ipython", {"code": "print('a' * 300)"})])
    engine = scripted(lambda request: chatter)
    episode = play(tokenizer, toolset, engine, task(), max_turns=50)
    assert episode.finish_reason == "context"
    assert len(episode.input_ids) <= 512 and episode.policy_mask[-1]


def test_a_sampled_media_token_ends_the_episode_before_it(tokenizer, toolset, scripted) -> None:
    ids = [5, 6, tokenizer.media_pad_id, tokenizer.im_end_id]
    episode = play(tokenizer, toolset, scripted(turns(ids)), task())
    assert (episode.finish_reason, episode.reward, episode.policy_tokens) == ("malformed", 0.0, 2)
    assert tokenizer.media_pad_id not in episode.input_ids


@pytest.mark.parametrize(
    "code", ["print(chr(0xd83d))", r"raise ValueError('\ud800')", "'\ud83d'", "print('\x00' + chr(0xffff))"]
)
def test_half_a_character_from_a_program_is_an_observation(code, tokenizer, toolset, scripted, speak) -> None:
    call = ("ipython", {"code": code})
    episode = play(tokenizer, toolset, scripted(turns(speak("", [call]), speak("3"))), task())
    assert (episode.finish_reason, episode.reward) == ("answer", 1.0)


@pytest.mark.parametrize(
    ("completion", "told"),
    [
        (Completion([5], [-0.1], "abort"), "gave up the request"),
        (Completion([5, 6], [-0.1], "stop"), "not one to a token"),
        (Completion([5], [math.nan], "stop"), "not finite"),
        (Completion([5], [-math.inf], "stop"), "not finite"),
        (Completion([1024], [-0.1], "stop"), r"outside 0\.\.1023"),
        (Completion([-1], [-0.1], "stop"), r"outside 0\.\.1023"),
        (Completion([5] * 101, [-0.1] * 101, "length"), "101 tokens, of which it may use 100"),
    ],
)
def test_what_cannot_be_a_completion_fails_the_episode_before_it_is_trained_on(
    completion, told, tokenizer, toolset
) -> None:
    class Broken:
        async def generate(self, requests: Any) -> list[Completion]:
            return [completion]

    with pytest.raises(MoonflowError, match=told):
        play(tokenizer, toolset, Broken(), task())


def test_without_a_sandbox_no_episode_can_go_on(tokenizer, scripted, speak, monkeypatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    call = speak("", [("ipython", {"code": "1"})])
    with Toolset() as none, pytest.raises(Unavailable):
        play(tokenizer, none, scripted(turns(call)), task())


def test_an_image_task_shows_its_picture_and_computes_on_it(tokenizer, toolset, scripted, speak) -> None:
    picture = np.zeros((28, 56, 3), np.uint8)
    picture[:10, :4] = 255
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png")
    messages = [{"role": "user", "content": [{"type": "image", "media": "png"}, {"type": "text", "text": "How many?"}]}]
    sample = task(messages=messages, media={"png": buffer.getvalue()}, environment={"array": "png"}, answer=40)
    engine = scripted(turns(speak("", [("ipython", {"code": "(img > 99).sum()"})]), speak("40")))
    episode = play(tokenizer, toolset, engine, sample)
    assert "\n40" in tokenizer.decode(engine.requests[1].input_ids)
    assert engine.requests[1].pixel_values is not None and engine.requests[1].grid_thws == [(1, 2, 4)]
    assert episode.input_ids.count(tokenizer.media_pad_id) == 2
    assert episode.reward == 1.0


def test_search_normalises_the_query() -> None:
    records = {"peru capital": "Lima"}
    assert search(records, "  Peru  CAPITAL ") == "Lima"
    assert search(records, "Chad capital") == "no result"


@pytest.mark.parametrize("name", odd_images())
def test_a_picture_is_the_same_to_a_tool_as_to_the_model(name: str) -> None:
    data, seen = odd_images()[name]
    got = environment_array(task(environment={"array": "png"}, media={"png": data}))
    np.testing.assert_array_equal(got, np.asarray(Image.fromarray(seen).convert("L")))


def test_bad_environments_name_the_sample() -> None:
    too_large = task(environment={"array": "png"}, media={"png": blank_png(8_000, 8_000)})
    with pytest.raises(MoonflowError, match="a-0 of array_tool.*8,000 x 8,000 pixels.*MAX_IMAGE_PIXELS"):
        environment_array(too_large)
    with pytest.raises(MoonflowError, match="a-0 of array_tool.*cannot be decoded"):
        environment_array(task(environment={"array": "png"}, media={"png": b"no image"}))
    with pytest.raises(MoonflowError, match="a-0 of array_tool.*0-255"):
        environment_array(task(environment={"array": [[1, 2], [3]]}))
    with pytest.raises(MoonflowError, match="a-0 of array_tool.*'png'"):
        environment_array(task(environment={"array": "png"}))
    with pytest.raises(MoonflowError, match="a-0 of array_tool.*0-255"):
        environment_array(task(environment={"array": [[1, 256]]}))
