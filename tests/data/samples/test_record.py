from __future__ import annotations

import json

import pytest

from model.boundary.errors import MoonflowError
from model.codec.image import ImageConfig
from model.data.samples.record import read_record
from model.data.samples.sample import Sample
from model.data.samples.tokenize import tokenize
from tests.corpus import small_tokenizer
from tests.data.user.odd import record

QUESTION, ANSWER = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}


def conversation(*messages: object) -> bytes:
    return record("k", segments=None, messages=list(messages))


def calling(arguments: object) -> Sample:
    asked = {"role": "assistant", "content": "", "tool_calls": [{"name": "search", "arguments": arguments}]}
    return Sample(**read_record(conversation(QUESTION, asked), "k.json"))  # type: ignore[arg-type]


def test_a_sound_record_is_what_its_json_says() -> None:
    parts = [{"type": "image", "media": "png"}, {"type": "text", "text": "what\u2028is it?"}]
    text = record("k", segments=None, media=["png"], tools=["search"], answer={"a": [1, 2.5, None]}, reward="exact",
                  environment={"n": 10**30}, messages=[
        {"role": "system", "content": "be brief"}, {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "reasoning": "hm", "loss": False,
         "tool_calls": [{"name": "search", "arguments": {"query": "é", "n": 1}}]},
        {"role": "tool", "tool_call_id": "functions.search:0", "content": "it is"}, ANSWER,
    ])  # fmt: skip
    assert read_record(text, "k.json") == json.loads(text)
    assert read_record(b"\xef\xbb\xbf" + text, "k.json") == json.loads(text)


def test_arguments_as_a_json_text_mean_the_object() -> None:
    tokenizer, image_config = small_tokenizer(), ImageConfig()
    as_object = tokenize(calling({"query": "x", "n": {"m": 1}}), tokenizer, image_config)
    as_text = tokenize(calling('{"query":"x",\n"n":{"m":1}}'), tokenizer, image_config)
    assert as_text.input_ids.tolist() == as_object.input_ids.tolist()
    assert '{"query": "x", "n": {"m": 1}}' in tokenizer.decode(as_text.input_ids.tolist())
    for arguments in ("[1]", "1", "{", '{"a": NaN}', '"{}"', None, [1], "[" * 5000):
        with pytest.raises(MoonflowError, match=r"k\.json: messages\.1\.assistant\.tool_calls\.0\.arguments: "):
            calling(arguments)


def segment(**fields: object) -> bytes:
    return record("k", segments=[{"type": "text", "text": "x", "loss": True}, fields])


ODD = [
    (b"{", "not JSON"),
    (b"[]", "JSON object"),
    (b"5", "JSON object"),
    (b'{"key": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "recursion limit"),
    (b'{"key": ' + b"9" * 5_000 + b"}", "number out of range"),
    (b'{"key": NaN}', "not JSON"),
    (b'{"key": "\\ud800"}', "not JSON"),
    (b'{"key": "\xed\xa0\x80"}', "not JSON"),
    (b'{"key": "a", "key": "b"}', "the key 'key' is given twice"),
    (record("k")[:-1] + b', "answer": {"a": 1, "a": 2}}', "the key 'a' is given twice"),
    (record("k", colour=1), "colour: unknown field"),
    (record("k", ability=None), "ability: missing field"),
    (record("k", ability="juggling"), "ability: .*'knowledge'"),
    (record("k", modality=["text"]), "modality: "),
    (record("k", source=5), "source: .*string"),
    (record("k", media={"png": "png"}), "media: .*list"),
    (record("k", media="png"), "media: .*list"),
    (record("k", media=[["png"]]), r"media\.0: .*string"),
    (b'{"media": null,' + record("k")[1:], "media: .*list"),
    (record("k", tools=["saw"]), r"tools\.0: .*unknown tool 'saw'.*search"),
    (record("k", declared_tools=[{"name": "saw"}]), r"declared_tools\.0: .*type function and function\.name"),
    (record("k", declared_tools=["saw"]), r"declared_tools\.0: .*dictionary"),
    (record("k", messages=[QUESTION, ANSWER]), "both segments and messages"),
    (segment(type="text", text="x", loss="false"), r"segments\.1\.text\.loss: .*boolean"),
    (segment(type="text", text="x", loss=0), r"segments\.1\.text\.loss: .*boolean"),
    (segment(type="text", text="x"), r"segments\.1\.text\.loss: missing"),
    (segment(type="text", text=None, loss=True), r"segments\.1\.text\.text: .*string"),
    (segment(type="text", text="x", loss=True, media="png"), r"segments\.1\.text\.media: unknown"),
    (segment(type="audio", media="mp3"), r"segments\.1: .*'audio'.*'text', 'image', 'video'"),
    (segment(type="Image", media="png"), r"segments\.1: .*'Image'"),
    (segment(type=["image"], media="png"), r"segments\.1: "),
    (segment(type="image", media=["png"]), r"segments\.1\.image\.media: .*string"),
    (segment(type="image"), r"segments\.1\.image\.media: missing"),
    (segment(media="png"), r"segments\.1: .*discriminator"),
    (record("k", segments=["x"]), r"segments\.0: "),
    (record("k", segments={"type": "text"}), "segments: .*list"),
    (conversation({"role": "nobody", "content": "x"}), r"messages\.0: .*'nobody'.*'assistant', 'tool'"),
    (conversation({"role": "developer", "content": "x"}), r'messages\.0: .*write "system"'),
    (conversation({"role": "user"}), r"messages\.0\.user\.content: missing"),
    (conversation({"role": "user", "content": None}), r"messages\.0\.user\.content"),
    (conversation({"role": "user", "content": 5}), r"messages\.0\.user\.content"),
    (conversation({"role": "user", "content": "x", "loss": True}), r"messages\.0\.user\.loss: unknown field"),
    (conversation(QUESTION, {**ANSWER, "loss": "false"}), r"messages\.1\.assistant\.loss: .*boolean"),
    (conversation(QUESTION, {**ANSWER, "reasoning_content": "hm"}), r'reasoning_content: unknown field.*"reasoning"'),
    (conversation(QUESTION, {**ANSWER, "tool_calls": [{"name": "a b", "arguments": {}}]}), r"tool_calls\.0\.name"),
    (conversation(QUESTION, {**ANSWER, "tool_calls": [{"type": "function", "function": {}}]}),
     r"tool_calls\.0\.function: unknown field \(write tool_calls as.*name: missing"),
    (conversation({"role": "tool", "tool_call_id": 5, "content": "x"}), r"messages\.0\.tool\.tool_call_id"),
    (conversation({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]}),
     r'messages\.0\.user.*image_url.*write \{"type": "image", "media": "png"\}'),
    (conversation({"role": "user", "content": [{"type": "text", "text": 5}]}), r"content\.parts\.0\.text\.text"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), ODD, ids=[words for _, words in ODD])
def test_an_odd_record_is_named_by_its_field(text: bytes, words: str) -> None:
    with pytest.raises(MoonflowError, match=f"^shard a, member 'k.json': .*{words}") as error:
        read_record(text, "shard a, member 'k.json'")
    assert "\n" not in str(error.value)


def test_of_many_faults_the_first_are_named() -> None:
    with pytest.raises(MoonflowError, match=r"segments\.2: .*; and 7 more; see"):
        read_record(record("k", segments=[5] * 10), "k.json")
