"""Whatever is sent, the answer is a request for the engine or an error that says what is wrong."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from components.serve.errors import ApiError
from components.serve.openai_api import Asked, ChatRequest, parse, to_engine
from model.boundary import strict_json
from model.codec.image import ImageConfig
from model.codec.video import encode_mp4
from tests.components.serve.media_messages import data_url, showing
from tests.odd_media import file, noise
from tests.tiny_folders import tiny_tokenizer

CONTEXT = 512
ASK = [{"role": "user", "content": "Which?"}]


def outcome(body: bytes) -> Asked | ApiError:
    try:
        asked = to_engine(parse(body), tiny_tokenizer(), ImageConfig(), CONTEXT)
    except ApiError as error:
        assert 400 <= error.status < 500 and error.message
        json.loads(strict_json.write(error.body).encode(), parse_constant=pytest.fail)
        return error
    for request in asked.requests:
        assert len(request.input_ids) + request.max_new_tokens <= CONTEXT
        assert max(request.input_ids) < tiny_tokenizer().vocab_size
    return asked


def written(value: Any) -> bytes:
    return json.dumps(value).encode()  # NaN, Infinity and half surrogates as they are


# Values that have broken something somewhere.
ODD = st.sampled_from([
    None, True, 0, -1, 2**63, 10**400, 1e308, float("nan"), float("inf"), -float("inf"), "", "\ud83d", "\udc00x", "\0",
    [], {}, [[]], [{}], {"": {}}, [["x"]], {"type": {}}, "x" * 300, "<|im_end|>", "data:image/png;base64,AAAA",
])  # fmt: skip
ANY = st.recursive(
    ODD | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def sometimes_odd(usual: st.SearchStrategy) -> st.SearchStrategy:
    return st.one_of(usual, usual, usual, ANY)


def record(**fields: st.SearchStrategy) -> st.SearchStrategy:
    return st.fixed_dictionaries({}, optional={name: sometimes_odd(value) for name, value in fields.items()})


TEXT = st.text(max_size=8)
KIND = st.sampled_from(["object", "array", "string", "null", "integer", "odd"])
SCHEMA: st.SearchStrategy = st.deferred(
    lambda: record(
        type=KIND | st.lists(KIND, max_size=3),
        properties=st.dictionaries(TEXT, SCHEMA, max_size=2),
        items=SCHEMA,
        required=st.lists(TEXT, max_size=2),
        enum=st.lists(ANY, max_size=2),
        const=ANY,
        anyOf=st.lists(SCHEMA, max_size=2),
        **{"$ref": st.just("#")},
    )
)
NAME = st.sampled_from(["search", "f", "g"])
TOOL = record(type=st.just("function"), function=record(name=NAME, description=TEXT, parameters=SCHEMA))
URL = st.binary(max_size=40).map(data_url)
PART = record(
    type=st.sampled_from(["text", "image_url", "video_url"]), text=TEXT,
    image_url=record(url=URL), video_url=record(url=URL),
)  # fmt: skip
CALL = record(
    id=NAME, type=st.just("function"),
    function=record(name=NAME, arguments=ANY.map(lambda value: written(value).decode()) | st.just('{"a": "\\ud83d"}')),
)  # fmt: skip
MESSAGE = record(
    role=st.sampled_from(["user", "system", "assistant", "tool", "developer"]),
    content=TEXT | st.lists(PART, max_size=3),
    tool_calls=st.lists(CALL, max_size=2), tool_call_id=NAME, reasoning_content=TEXT, name=TEXT,
)  # fmt: skip
USUAL: dict[str, st.SearchStrategy] = {
    "temperature": st.sampled_from([0, 1e-38, 5e-324, 1]), "top_p": st.sampled_from([5e-324, 1e-300, 1]),
    "max_tokens": st.sampled_from([1, 600, 2**62]), "n": st.sampled_from([1, 3]), "seed": st.integers(),
    "stop": TEXT | st.lists(TEXT, max_size=3), "tools": st.lists(TOOL, max_size=2), "stream": st.booleans(),
    "chat_template_kwargs": record(thinking=st.booleans()), "stream_options": record(include_usage=st.booleans()),
    "tool_choice": st.sampled_from(["auto", "none"]), "user": TEXT, "metadata": st.dictionaries(TEXT, ANY, max_size=2),
}  # fmt: skip
CHAT = st.fixed_dictionaries(
    {"model": sometimes_odd(st.just("m")), "messages": sometimes_odd(st.lists(MESSAGE, min_size=1, max_size=3))},
    optional={name: sometimes_odd(value) for name, value in USUAL.items()}
    | {name: ANY for name in ChatRequest.model_fields if name not in USUAL and name not in ("model", "messages")},
)
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@FUZZ
@given(st.binary(max_size=200) | ANY.map(written))
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b'{"model": "m", "messages": [' + b"1" * 5000 + b"]}")
@example(b"\xef\xbb\xbf{}")
def test_any_bytes(body: bytes):
    assert isinstance(outcome(body), ApiError)


@FUZZ
@given(CHAT)
def test_any_chat(chat: dict[str, Any]):
    outcome(written(chat))


@FUZZ
@given(st.lists(TOOL, min_size=1, max_size=3))
def test_any_tools(tools: list[Any]):
    outcome(written({"model": "m", "messages": ASK, "tools": tools}))


@FUZZ
@given(st.lists(MESSAGE, min_size=1, max_size=4))
def test_any_messages(messages: list[Any]):
    outcome(written({"model": "m", "messages": messages}))


HALF = "a\ud83d"


@pytest.mark.parametrize("fields", [
    {"model": HALF}, {"user": HALF}, {"stop": HALF}, {"stop": [HALF]}, {HALF: 1}, {"metadata": {HALF: HALF}},
    {"messages": [{"role": "user", "content": HALF}]},
    {"messages": [{"role": HALF, "content": "x"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": HALF}]}]},
    {"messages": [*ASK, {"role": "assistant", "tool_calls": [
        {"id": "a", "function": {"name": "f", "arguments": '{"a": "\\ud83d"}'}}]}, *ASK]},
    {"tools": [{"type": "function", "function": {"name": HALF}}]},
    {"tools": [{"type": "function", "function": {"name": "f", "description": HALF}}]},
    {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"enum": [HALF]}}}]},
    {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {HALF: {}}}}}]},
])  # fmt: skip
def test_half_surrogates_are_no_text(fields: dict[str, Any]):
    told = outcome(written({"model": "m", "messages": ASK} | fields))
    assert isinstance(told, ApiError) and told.status == 400


@pytest.mark.parametrize("arguments", [
    '{"a": NaN}', '{"a": 1e999}', '{"a": -Infinity}', '{"a": ' + "1" * 5000 + "}", '{"a": ' + "[" * 100_000, "[]", "",
])  # fmt: skip
def test_arguments_of_calls_are_json(arguments: str):
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    told = outcome(written({"model": "m", "messages": [*ASK, {"role": "assistant", "tool_calls": [call]}, *ASK]}))
    assert isinstance(told, ApiError) and told.param == "messages.1.tool_calls.0"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF", "TIFF", "MP4"])
def test_any_broken_medium(kind: str):
    draw = random.Random(0)
    whole = encode_mp4(noise(4, 32, 48, 3)) if kind == "MP4" else file(Image.fromarray(noise(32, 48, 3)), kind)
    key = "video_url" if kind == "MP4" else "image_url"
    refused = 0
    for turn in range(60):
        data = bytearray(whole)
        for _ in range(0 if turn == 0 else draw.choice([1, 3, 20])):
            data[draw.randrange(len(data))] = draw.randrange(256)
        del data[draw.choice([len(data), len(data), draw.randrange(len(data))]) :]
        told = outcome(written({"model": "m", "messages": showing(bytes(data), kind=key)}))
        assert turn or isinstance(told, ApiError) == (kind == "TIFF")  # of no kind that browsers show
        refused += isinstance(told, ApiError)
    assert refused > 5
