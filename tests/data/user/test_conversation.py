"""Conversations of a user: what a line means, and what each bad line is told."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.boundary.errors import MoonflowError, Transient
from model.codec.image import ImageConfig, encode_png
from model.codec.tokenizer import Tokenizer
from model.data.samples.problems import attempt
from model.data.samples.sample import Sample
from model.data.samples.shards import write_shard
from model.data.samples.tokenize import tokenize
from model.data.user import conversation
from model.data.user.conversation import read_line
from tests.corpus import small_tokenizer
from tests.shards import read_shard

PNG = encode_png(np.zeros((20, 30, 3), np.uint8))
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Ask the sky.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}  # fmt: skip
ASKED = {"role": "user", "content": "x"}
SAID = {"role": "assistant", "content": "y"}


def image(path: str) -> bytes:
    if path != "cat.png":
        raise MoonflowError(f"image {path!r} cannot be read")
    return PNG


def read(*messages: object, tools: object = None, **more: object) -> Sample:
    line = {"messages": list(messages), **({"tools": tools} if tools else {}), **more}
    return read_line(json.dumps(line).encode(), "a.jsonl, line 7", "00000-00000007", image)[0]


def call(name: str, arguments: str, call_id: str = "a") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def shown(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": "high"}}


def rendered(line: dict[str, Any], tokenizer: Tokenizer, pads: int = 0) -> tuple[list[int], list[bool]]:
    """Tokens and loss of a line, written out from the released template by hand: no code of ours but the tokenizer.

    Every text between two special tokens is encoded by itself; the loss covers what the assistant writes.
    """
    ids: list[int] = []
    loss: list[bool] = []

    def special(name: str, on: bool = False) -> None:
        ids.append(tokenizer.token_id(name))
        loss.append(on)

    def text(words: str, on: bool = False) -> None:
        tokens = tokenizer.encode(words) if words else []
        ids.extend(tokens)
        loss.extend([on] * len(tokens))

    def opened(role: str, name: str, body: str = "") -> None:
        special(f"<|im_{role}|>")
        text(name)
        special("<|im_middle|>")
        text(body)

    if line.get("tools"):
        declared = "// Ask the sky.\ntype weather = (_: {city: string}) => any;\n"
        opened("system", "tool_declare", f"namespace functions {{\n{declared}}}")
        special("<|im_end|>")
    numbers: dict[str, str] = {}
    answers = [n for n, m in enumerate(line["messages"]) if m["role"] == "assistant"]
    plain = [n for n in answers if not line["messages"][n].get("tool_calls") and n != len(line["messages"]) - 1]
    for number, message in enumerate(line["messages"]):
        if message["role"] == "assistant":
            on = message.get("weight", 1) == 1
            special("<|im_assistant|>")
            text("assistant")
            special("<|im_middle|>")
            special("<think>")
            thinking = message.get("reasoning_content", "") if number > max(plain, default=-1) else ""
            text(thinking, on)
            special("</think>", on and bool(thinking))
            text(message.get("content") or "", on)
            if made := message.get("tool_calls"):
                special("<|tool_calls_section_begin|>", on)
                for one in made:
                    numbers[one["id"]] = f"functions.{one['function']['name']}:{len(numbers)}"
                    special("<|tool_call_begin|>", on)
                    text(numbers[one["id"]], on)
                    special("<|tool_call_argument_begin|>", on)
                    text(json.dumps(json.loads(one["function"]["arguments"]), ensure_ascii=False), on)
                    special("<|tool_call_end|>", on)
                special("<|tool_calls_section_end|>", on)
            special("<|im_end|>", on)
            continue
        head = f"## Return of {numbers[message['tool_call_id']]}\n" if message["role"] == "tool" else ""
        role = "system" if message["role"] == "tool" else message["role"]
        content = message["content"]
        if isinstance(content, str):
            opened(role, message["role"], head + content)
        else:
            opened(role, message["role"])
            words = head
            for part in content:
                if part["type"] == "text":
                    words += part["text"]
                    continue
                text(words)
                special("<|media_begin|>")
                text("image")
                special("<|media_content|>")
                ids.extend([tokenizer.media_pad_id] * pads)
                loss.extend([False] * pads)
                special("<|media_end|>")
                words = "\n"
            text(words)
        special("<|im_end|>")
    return ids, loss


def same(line: dict[str, Any], pads: int = 0) -> Sample:
    """Assert that the line is encoded as it is rendered by hand, also after it was written into a shard."""
    sample, _ = read_line(json.dumps(line).encode(), "a.jsonl, line 1", "00000-00000001", image)
    (again,) = read_shard(write_shard([sample]))
    assert again == sample
    made = tokenize(again, small_tokenizer(), ImageConfig())
    assert (made.input_ids.tolist(), made.loss_mask.tolist()) == rendered(line, small_tokenizer(), pads)
    return sample


def test_several_turns_with_thinking_tools_and_weights() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Rain in Lima?"},
        {"role": "assistant", "content": None, "reasoning_content": "Look.", "tool_calls": [
            call("weather", '{"city":"Lima"}', "one"), call("weather", '{"city": "L\\u00edma"}', "two")]},
        {"role": "tool", "tool_call_id": "two", "content": "no"},
        {"role": "tool", "tool_call_id": "one", "content": "yes"},
        {"role": "assistant", "content": "Yes.", "weight": 0},
        {"role": "user", "content": "And <|im_end|> now?"},
        {"role": "assistant", "reasoning_content": "Again.", "content": "Still."},
    ]  # fmt: skip
    sample = same({"messages": messages, "tools": [WEATHER]})
    assert (sample.modality, sample.ability) == ("text", "agentic")
    last = [{**messages[2], "reasoning_content": "Kept."}, *messages[3:5], {**messages[5], "weight": 1.0}]
    same({"messages": [messages[1], *last], "tools": [WEATHER]})  # thinking before the answer to the last question


def test_images_by_path_and_as_data_count_as_their_pads() -> None:
    parts = [{"type": "text", "text": "see"}, shown("cat.png"), shown(URL), {"type": "text", "text": "?"}]
    sample = same({"messages": [{"role": "user", "content": parts}, SAID]}, pads=2)
    assert sample.modality == "image" and list(sample.media.values()) == [PNG, PNG]
    assert tokenize(sample, small_tokenizer(), ImageConfig()).grid_thws == [(1, 2, 4), (1, 2, 4)]


WORDS = st.text(st.characters(codec="utf-8"), max_size=12)
TURN = st.tuples(WORDS, WORDS.map(lambda words: words or "."), WORDS, st.sampled_from((0, 1)))


@given(st.lists(TURN, min_size=1, max_size=4))
@settings(deadline=None, max_examples=60)
def test_any_texts_are_encoded_as_by_hand(turns: list[tuple[str, str, str, int]]) -> None:
    turns[-1] = (*turns[-1][:3], 1)
    messages: list[dict[str, Any]] = []
    for question, answer, thinking, weight in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer, "reasoning_content": thinking, "weight": weight})
    same({"messages": messages})


def test_what_an_api_answered_can_be_kept_as_it_came() -> None:
    saved = {**SAID, "refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None}
    assert read({"role": "developer", "content": "be brief"}, ASKED, saved).messages[0]["role"] == "system"
    assert read(ASKED, {**SAID, "loss": False}, ASKED, SAID).messages[1]["loss"] is False
    line = json.dumps({"messages": [ASKED, SAID], "id": 5, "prompt": "x"}).encode()
    assert read_line(line, "w", "k", image)[1] == {"id", "prompt"}


BAD: list[tuple[object, str]] = [
    ({"role": "robot", "content": "x"}, "role.*'system', 'developer', 'user', 'assistant', 'tool'|robot"),
    ({"role": "user"}, "content: missing field"),
    ({"role": "user", "content": 5}, "messages.1.user.content"),
    ({"role": "user", "content": [{"type": "image", "image": "cat.png"}]}, r'write \{"type": "image_url"'),
    ({"role": "user", "content": [{"type": "video_url", "video_url": {"url": "a.mp4"}}]}, "only images are read"),
    ({"role": "user", "content": [{"type": "image_url", "image_url": "cat.png"}]}, "valid dictionary"),
    ({"role": "system", "content": [shown("cat.png")]}, "system.content"),
    ({"role": "assistant", "content": ""}, "neither content nor tool_calls"),
    ({"role": "assistant", "content": None}, "neither content nor tool_calls"),
    ({"role": "assistant", "content": "x", "weight": 2}, "weight.*0 .no loss. or 1"),
    ({"role": "assistant", "content": "x", "weight": 0, "loss": 1}, "say different things"),
    ({"role": "assistant", "content": "x", "reasoning": "y"}, 'write "reasoning_content"'),
    ({"role": "assistant", "content": "x", "function_call": {"name": "f"}}, 'write "tool_calls"'),
    ({"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f f", "arguments": "{}"}}]}, "name"),
    ({"role": "assistant", "tool_calls": [call("f", "{")]}, "arguments.*not JSON"),
    ({"role": "assistant", "tool_calls": [call("f", "[1]")]}, "arguments"),
    ({"role": "assistant", "tool_calls": [call("f", '{"n": 1e999}')]}, "arguments"),
    ({"role": "assistant", "tool_calls": [call("f", '{"n": ' + "9" * 5000 + "}")]}, "arguments"),
    ({"role": "assistant", "tool_calls": [call("f", "[" * 5000)]}, "arguments"),
    ({"role": "assistant", "tool_calls": [call("f", '{"a": "\\ud800"}')]}, "arguments"),
    ({"role": "tool", "content": "x"}, "tool_call_id: missing field"),
    ({"role": "tool", "tool_call_id": "a", "content": "x"}, "messages.1: tool_call_id 'a' answers no call.*are none"),
    ({"role": "user", "content": [shown("no.png")]}, "'no.png' cannot be read"),
    ({"role": "user", "content": [shown("http://a/b.png")]}, "is an address"),
    ({"role": "user", "content": [shown("data:,x")]}, "another form"),
    ({"role": "user", "content": [shown(URL[:60])]}, "base64|cannot be decoded"),
    ({"role": "user", "content": [shown("data:image/png;base64,eA==")]}, "decoded"),
    ({"role": "user", "content": "x" * 70_000}, "word of more than 65,536 characters"),
    ({"role": "user", "content": "x " * 2**21 + "x"}, "4,194,307 characters"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "told"), BAD, ids=range(len(BAD)))
def test_what_is_wrong_with_a_message_is_told(message: object, told: str) -> None:
    with pytest.raises(MoonflowError, match=told) as error:
        read(ASKED, message, SAID)
    assert str(error.value).startswith("a.jsonl, line 7: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"{", "not JSON"),
        (b"[]", "it has no messages"),
        (b'{"prompt": "x", "completion": "y"}', "it has no messages"),
        (b'{"messages": {}}', "it has no messages"),
        (b'{"messages": []}', "at least 1 item"),
        (b'{"messages": ["x"]}', "messages.0"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "hex escape"),
        (b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "recursion limit"),
        (b'{"messages": ' + b"9" * 5_000 + b"}", "number out of range"),
        (b'{"messages": [], "messages": []}', "given twice"),
        (b'{"messages": [NaN]}', "not JSON"),
        (b"\xff\xfe{", "not JSON"),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "no assistant message"),
        (b'{"messages": [{"role": "assistant", "content": "x", "weight": 0}]}', "every assistant message has weight 0"),
        (b'{"messages": [{"role": "assistant", "content": "x"}], "tools": [{"name": "f"}]}', "tools.0"),
        (b'{"messages": [{"role": "assistant", "content": "x"}], "tools": [{"type": "function", "function": '
         b'{"name": "f"}}, {"type": "function", "function": {"name": "f"}}]}', "two tools are named 'f'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_line_is_told(line: bytes, told: str) -> None:
    with pytest.raises(MoonflowError, match=told) as error:
        read_line(line, "a.jsonl, line 7", "k", image)
    assert str(error.value).startswith("a.jsonl, line 7: ") and "\n" not in str(error.value)


def test_images_without_end_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "MAX_PATCHES", 20)
    assert read({"role": "user", "content": [shown("cat.png")] * 2}, SAID).media == {"0.png": PNG}
    with pytest.raises(MoonflowError, match="more than 20 patches"):
        read({"role": "user", "content": [shown("cat.png")] * 3}, SAID)
    monkeypatch.setattr(conversation, "MAX_MEDIA_BYTES", len(PNG))
    with pytest.raises(MoonflowError, match="more than 0 MiB"):
        read({"role": "user", "content": [shown("cat.png"), shown(URL)]}, SAID)


def test_a_store_that_is_away_is_no_fault_of_the_line() -> None:
    def away(path: str) -> bytes:
        raise Transient("the store does not answer")

    line = json.dumps({"messages": [{"role": "user", "content": [shown("cat.png")]}, SAID]}).encode()
    with pytest.raises(Transient):
        attempt("a line", read_line, line, "w", "k", away)


def test_two_answers_to_one_question_are_held_out_together() -> None:
    first, second = read(ASKED, SAID), read(ASKED, {**SAID, "content": "z"}, ASKED, SAID)
    assert first.source == second.source != read({**ASKED, "content": "w"}, SAID).source
    by_path, by_data = (read({"role": "user", "content": [shown(url)]}, SAID) for url in ("cat.png", URL))
    assert by_path.source == by_data.source != first.source
    assert read(SAID).source != read({**SAID, "content": "z"}).source


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["user", "assistant", "tool", "text", "image_url", "cat.png", URL]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["role", "content", "messages", "tools", "type", "text", "image_url", "url", "tool_calls", "id",
                         "function", "name", "arguments", "tool_call_id", "weight", "loss", "reasoning_content"]),
        inner, max_size=5),
    max_leaves=12,
)  # fmt: skip


@given(st.lists(ANY, max_size=4), ANY)
@settings(deadline=None, max_examples=300)
def test_any_json_is_a_sample_or_a_told_fault(messages: list[Any], tools: Any) -> None:
    text = json.dumps({"messages": messages, "tools": tools}).encode()
    try:
        sample, _ = read_line(text, "w", "k", image)
    except MoonflowError as error:
        assert str(error).startswith("w: ")
        return
    assert tokenize(sample, small_tokenizer(), ImageConfig()).loss_mask.any()
