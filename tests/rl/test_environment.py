from __future__ import annotations

import asyncio
import io
import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.boundary.errors import MoonflowError, Unavailable
from model.codec.chat import ToolCall, encode_chat
from model.codec.image import ImageConfig, encode_png
from model.codec.tokenizer import Tokenizer
from model.codec.video import decode_video
from model.data.samples.sample import Sample
from model.rl.environment import Episode, derive_seed, run_episode
from model.rl.tools.search import search
from model.rl.tools.toolset import Toolset, environment_array
from model.rollout.protocol import Completion
from tests.odd_media import blank_png, file, odd_images, video
from tests.samples import make_sample

QUESTION = [{"role": "user", "content": "How many pixels are above 4?"}]
ARRAY = {"array": [[0, 5, 9], [1, 2, 7]]}


def task(**fields: Any) -> Sample:
    base: dict[str, Any] = {
        "key": "a-0", "family": "array_tool", "ability": "coding", "modality": "text",
        "messages": QUESTION, "tools": ["ipython"], "answer": 3, "reward": "number", "environment": ARRAY,
    }  # fmt: skip
    return make_sample(**{**base, **fields})


def play(tokenizer: Tokenizer, toolset: Toolset, engine: Any, sample: Sample, **limits: int) -> Episode:
    given = {"max_turns": 3, "max_new_tokens": 100, "seed": 1, **limits}
    return asyncio.run(run_episode(engine, tokenizer, sample, ImageConfig(), toolset, temperature=1.0, **given))


def test_an_episode_is_token_for_token_the_rendered_conversation(tokenizer, toolset, scripted, speak) -> None:
    call = ("ipython", {"code": "print((img > 4).sum())"})
    first, last = speak("", [call]), speak("3")
    episode = play(tokenizer, toolset, scripted.saying(first, last), task())
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


def test_a_task_whose_reference_thinks_is_asked_in_thinking_mode(tokenizer, toolset, scripted) -> None:
    end = [tokenizer.token_id("</think>")]
    turns = [*QUESTION, {"role": "assistant", "reasoning": "5, 9, 7.", "content": "3"}]
    thought, said = tokenizer.encode("9, 7, 5."), [*tokenizer.encode("3"), tokenizer.im_end_id]
    engine = scripted.saying(thought + end + said)
    episode = play(tokenizer, toolset, engine, task(messages=turns))
    assert tokenizer.decode(engine.requests[0].input_ids).endswith("<|im_middle|><think>")
    assert (episode.reward, episode.response, episode.policy_tokens) == (1.0, "3", len(thought) + 1 + len(said))
    unclosed = scripted.saying([*thought, tokenizer.im_end_id], end + said)
    episode = play(tokenizer, toolset, unclosed, task(messages=turns))
    asked_again = tokenizer.decode(unclosed.requests[1].input_ids)
    assert "error: the reasoning was not closed" in asked_again and asked_again.endswith("<think>")
    assert (episode.reward, episode.turns) == (1.0, 2)


def test_the_users_later_turns_follow_the_answers(tokenizer, toolset, scripted, speak) -> None:
    """The last answer counts; the user says the same whatever the policy answers."""
    call = ("ipython", {"code": "print((img > 4).sum())"})
    turns = [
        QUESTION[0], {"role": "assistant", "content": "Above?"}, {"role": "user", "content": "Yes, above."},
        {"role": "assistant", "content": "", "tool_calls": [{"name": call[0], "arguments": call[1]}]},
        {"role": "tool", "tool_call_id": "functions.ipython:0", "content": "3"}, {"role": "assistant", "content": "3"},
        {"role": "user", "content": "Once more?"}, {"role": "assistant", "content": "3"},
    ]  # fmt: skip
    engine = scripted.saying(speak("Above?"), speak("", [call]), speak("3"), speak("3"))
    episode = play(tokenizer, toolset, engine, task(messages=turns), max_turns=4)
    whole = encode_chat(turns, ["ipython"], tokenizer)
    assert (episode.input_ids, episode.policy_mask) == (whole.ids, whole.loss)
    assert (episode.reward, episode.turns, episode.finish_reason) == (1.0, 4, "answer")
    silent = scripted.saying(speak("3"), speak("3"), speak("7"))
    episode = play(tokenizer, toolset, silent, task(messages=turns))
    assert (episode.response, episode.turns, episode.correct) == ("7", 3, False)
    early = play(tokenizer, toolset, scripted.saying(speak("3"), speak("3")), task(messages=turns), max_turns=2)
    assert (early.finish_reason, early.reward, early.response) == ("turns", 0.0, "")


def test_logprobs_belong_to_the_sampled_tokens(tokenizer, toolset, scripted, speak) -> None:
    first, last = speak("", [("ipython", {"code": "1"})]), speak("3")
    episode = play(tokenizer, toolset, scripted.saying(first, last), task())
    assert [value for value, ours in zip(episode.logprobs, episode.policy_mask, strict=True) if ours] == [
        -n / 100 for n in range(len(first))
    ] + [-n / 100 for n in range(len(last))]
    assert all(value == 0 for value, mine in zip(episode.logprobs, episode.policy_mask, strict=True) if not mine)
    assert [t for t, mine in zip(episode.input_ids, episode.policy_mask, strict=True) if mine] == first + last
    assert episode.weight_versions == []  # this engine does not count them


def test_each_turn_has_its_own_seed_and_the_prompt_so_far(tokenizer, toolset, scripted, speak) -> None:
    engine = scripted.saying(speak("", [("ipython", {"code": "1"})]), speak("3"))
    episode = play(tokenizer, toolset, engine, task())
    assert [request.seed for request in engine.requests] == [derive_seed(1, 0), derive_seed(1, 1)]
    second = engine.requests[1].input_ids
    assert episode.input_ids[: len(second)] == second
    assert engine.requests[0].stop_token_ids == (tokenizer.im_end_id,)


def test_a_wrong_answer_earns_its_soft_reward(tokenizer, toolset, scripted, speak) -> None:
    episode = play(tokenizer, toolset, scripted.saying(speak("2")), task())
    assert episode.reward == pytest.approx(2 / 3) and not episode.correct


def test_bad_calls_are_answered_with_an_error(tokenizer, toolset, scripted, speak) -> None:
    unknown = speak("", [("search", {"query": "x"})])
    wrong = speak("", [("ipython", {"program": "1"})])
    broken = [*speak("", [("ipython", {"code": "1"})])[:-3], tokenizer.im_end_id]
    same_id = speak("", [("ipython", {"code": "1"}), ("ipython", {"code": "2"})])
    second = same_id.index(tokenizer.token_id("<|tool_call_end|>")) + 1
    repeated = [*same_id[:second], *same_id[1:second], *same_id[-2:]]
    engine = scripted.saying(unknown, wrong, broken, repeated, speak("3"))
    episode = play(tokenizer, toolset, engine, task(), max_turns=5)
    text = tokenizer.decode(episode.input_ids)
    for error in ("no tool search", "ipython takes code", "a tool call was not closed", "call ids repeat"):
        assert f"error: {error}" in text
    assert episode.reward == 1.0 and episode.turns == 5


def test_of_calls_with_one_id_the_first_runs(tokenizer, toolset, scripted, speak) -> None:
    both = speak("", [("ipython", {"code": "print(41 + 1)"}), ("ipython", {"code": "print(6 * 7 * 2)"})])
    second = both.index(tokenizer.token_id("<|tool_call_end|>")) + 1
    engine = scripted.saying([*both[:-2], *both[1:second], *both[1:second], *both[-2:]], speak("3"))
    episode = play(tokenizer, toolset, engine, task())
    text = tokenizer.decode(episode.input_ids)
    assert "error: call ids repeat, calls left out: 2<" in text
    assert text.count("## Return of") == 2 == episode.metrics["tool_calls"] and "\n42" in text and "\n84" in text


def test_an_episode_without_an_answer_earns_nothing(tokenizer, toolset, scripted, speak) -> None:
    call = speak("", [("ipython", {"code": "1"})])
    out_of_turns = play(tokenizer, toolset, scripted.saying(call, call), task(), max_turns=2)
    assert (out_of_turns.finish_reason, out_of_turns.reward, out_of_turns.turns) == ("turns", 0.0, 2)
    assert out_of_turns.policy_mask[-1]
    out_of_tokens = play(tokenizer, toolset, scripted.saying([5] * 9), task(), max_new_tokens=4)
    assert (out_of_tokens.finish_reason, out_of_tokens.reward, out_of_tokens.policy_tokens) == ("length", 0.0, 4)


def test_the_context_bounds_an_episode(tokenizer, toolset, scripted, speak) -> None:
    chatter = speak("", [("ipython", {"code": "print('a' * 300)"})])
    engine = scripted(lambda request: chatter)
    episode = play(tokenizer, toolset, engine, task(), max_turns=50)
    assert episode.finish_reason == "context"
    assert len(episode.input_ids) <= 512 and episode.policy_mask[-1]


def test_a_sampled_media_token_ends_the_episode_before_it(tokenizer, toolset, scripted) -> None:
    ids = [5, 6, tokenizer.media_pad_id, tokenizer.im_end_id]
    episode = play(tokenizer, toolset, scripted.saying(ids), task())
    assert (episode.finish_reason, episode.reward, episode.policy_tokens) == ("malformed", 0.0, 2)
    assert tokenizer.media_pad_id not in episode.input_ids


@pytest.mark.parametrize(
    "code", ["print(chr(0xd83d))", r"raise ValueError('\ud800')", "'\ud83d'", "print('\x00' + chr(0xffff))"]
)
def test_half_a_character_from_a_program_is_an_observation(code, tokenizer, toolset, scripted, speak) -> None:
    call = ("ipython", {"code": code})
    episode = play(tokenizer, toolset, scripted.saying(speak("", [call]), speak("3")), task())
    assert (episode.finish_reason, episode.reward) == ("answer", 1.0)


@pytest.mark.parametrize(
    ("completion", "told"),
    [
        (Completion([5], [-0.1], "abort"), "gave up the request"),
        (Completion([5, 6], [-0.1], "stop"), "not one per token"),
        (Completion([5], [math.nan], "stop"), "not finite"),
        (Completion([5], [-math.inf], "stop"), "not finite"),
        (Completion([1024], [-0.1], "stop"), r"outside 0\.\.1023"),
        (Completion([-1], [-0.1], "stop"), r"outside 0\.\.1023"),
        (Completion([5] * 101, [-0.1] * 101, "length"), "101 tokens, where at most 100 are allowed"),
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
        play(tokenizer, none, scripted.saying(call), task())


def test_an_image_task_shows_its_picture_and_computes_on_it(tokenizer, toolset, scripted, speak) -> None:
    picture = np.zeros((28, 56), np.uint8)
    picture[:10, :4] = 255
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png")
    messages = [{"role": "user", "content": [{"type": "image", "media": "png"}, {"type": "text", "text": "How many?"}]}]
    sample = task(messages=messages, media={"png": buffer.getvalue()}, environment={"array": "png"}, answer=40)
    engine = scripted.saying(speak("", [("ipython", {"code": "(img > 99).sum()"})]), speak("40"))
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
    stores_grey = "grey" in name or name in ("la", "one bit")
    got = environment_array(task(environment={"array": "png"}, media={"png": data}))
    np.testing.assert_array_equal(got, seen[..., 0] if stores_grey else seen)


def test_a_colour_file_has_three_channels_even_if_all_its_colours_are_grey() -> None:
    pixels = np.repeat(np.arange(12, dtype=np.uint8).reshape(3, 4, 1), 3, axis=2)
    for kind, grey in (("PNG", pixels[..., 0]), ("JPEG", pixels[..., 0]), ("PNG", pixels), ("JPEG", pixels)):
        data = file(Image.fromarray(grey), kind)
        array = environment_array(task(environment={"array": "1.x"}, media={"1.x": data}))
        assert array is not None and array.shape == grey.shape


def test_a_colour_array_may_be_written_as_lists() -> None:
    array = environment_array(task(environment={"array": [[[1, 2, 3], [4, 5, 255]]]}))
    assert array is not None and array.dtype == np.uint8 and array.tolist() == [[[1, 2, 3], [4, 5, 255]]]


def test_the_frames_of_a_video_are_those_that_the_model_sees(tokenizer, toolset, scripted, speak) -> None:
    data = video([np.full((28, 56, 3), 40 * number, np.uint8) for number in range(6)], fps=2)
    sample = task(environment={"array": "mp4"}, media={"mp4": data}, answer=6)
    frames = environment_array(sample)
    assert frames is not None and frames.shape == (6, 28, 56, 3)
    np.testing.assert_array_equal(frames, decode_video(data, ImageConfig())[0])
    one_a_second = ImageConfig(sample_fps=1)
    assert len(decode_video(data, one_a_second)[0]) == 3
    for config, said in ((ImageConfig(), "(6, (28, 56, 3))"), (one_a_second, "(3, (28, 56, 3))")):
        engine = scripted.saying(speak("", [("ipython", {"code": "len(images), images[0].shape"})]), speak("6"))
        asyncio.run(
            run_episode(
                engine, tokenizer, sample, config, toolset, max_turns=3, max_new_tokens=100, temperature=1.0, seed=1
            )
        )
        assert said in tokenizer.decode(engine.requests[1].input_ids)


def test_several_pictures_are_frames_that_keep_their_channels(toolset) -> None:
    greys = [np.full((28, 56), 40 * number, np.uint8) for number in range(3)]
    colours = [np.full((2, 4, 3), number, np.uint8) for number in range(2)]
    media = {f"{number}.png": encode_png(grey) for number, grey in enumerate(greys)}
    cases = (
        (task(environment={"images": list(media)}, media=media), (3, 28, 56, 1), "3 (28, 56) 80"),
        (task(environment={"images": [grey.tolist() for grey in greys]}), (3, 28, 56, 1), "3 (28, 56) 80"),
        (task(environment={"images": [one.tolist() for one in colours]}), (2, 2, 4, 3), "2 (2, 4, 3) 1"),
    )

    async def seen(sample: Sample) -> str:
        code = "print(len(images), images[0].shape, images[-1].max())"
        async with toolset.episode(sample) as tools:
            return await tools.call(ToolCall("functions.ipython:0", "ipython", {"code": code}))

    for sample, shape, printed in cases:
        frames = environment_array(sample)
        assert frames is not None and frames.shape == shape
        assert asyncio.run(seen(sample)) == printed


def test_a_colour_picture_may_be_as_large_as_a_program_takes_and_no_larger(toolset) -> None:
    def of(height: int) -> Sample:
        white = Image.new("RGB", (4096, height), "white")
        return task(environment={"array": "png"}, media={"png": file(white, compress_level=1)})

    async def shown(sample: Sample) -> str:
        async with toolset.episode(sample) as tools:
            return await tools.call(ToolCall("functions.ipython:0", "ipython", {"code": "img.shape, (img > 0).mean()"}))

    assert asyncio.run(shown(of(5461))) == "((5461, 4096, 3), 1.0)"
    with pytest.raises(MoonflowError, match=r"a-0 of array_tool.*\[5462, 4096, 3\].*PIXEL_BYTES"):
        environment_array(of(5462))
    half = of(2731)
    with pytest.raises(MoonflowError, match=r"environment.images.*2 x \[2731, 4096, 3\].*PIXEL_BYTES"):
        environment_array(task(environment={"images": ["png", "png"]}, media=half.media))


def test_bad_environments_name_the_sample() -> None:
    grey, colour = [[1, 2]], [[[1, 2, 3]]]
    for images, told in (
        ([], "no list of pictures"), ("mp4", "no list of pictures"), ([grey, [[1]]], "one size"),
        ([[[1, 2, 3]], colour], "all be grey or all be in colour"), ([grey, [[256, 1]]], "1 is no matrix"),
        ([grey, "png"], "1 names no medium: 'png'"),
    ):  # fmt: skip
        with pytest.raises(MoonflowError, match=f"a-0 of array_tool: environment.images.*{told}"):
            environment_array(task(environment={"images": images}))
    with pytest.raises(MoonflowError, match="a-0 of array_tool.*has array and images"):
        environment_array(task(environment={"images": [grey], "array": grey}))
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
    for array in ([], [[]], [[[1, 2]]], [[[[1, 2, 3]]]], [[0.5]]):
        with pytest.raises(MoonflowError, match="a-0 of array_tool.*no matrix of integers 0-255"):
            environment_array(task(environment={"array": array}))
    with pytest.raises(MoonflowError, match="a-0 of array_tool.*cannot be decoded"):
        environment_array(task(environment={"array": "mp4"}, media={"mp4": b"no video"}))
