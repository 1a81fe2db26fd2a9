"""What goes out is JSON, whatever the model said."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from components.serve import replies
from components.serve.engine_process import Token
from components.serve.replies import Reply
from components.serve.turn_reader import Delta
from model.boundary import strict_json
from model.codec.chat import ToolCall
from tests.tiny_folders import tiny_tokenizer


def read(data: bytes) -> Any:
    return json.loads(data.removeprefix(b"data: "), parse_constant=pytest.fail)


def test_half_surrogates_in_a_calls_arguments_become_replacement_characters():
    call = ToolCall("functions.f:0", "f", json.loads('{"a": "\\ud83d\\ude00 \\ud83d", "\\udc00": 1}'))
    for data in (
        Reply("m", "").whole([replies.choice(0, [Delta(call=call)], "tool_calls", None)], replies.usage(1, 1)),
        Reply("m", "").chunk([replies.chunk_choice(0, body) for body in replies.merged([Delta(call=call)], 0)]),
    ):
        choice = read(data)["choices"][0]
        (told,) = (choice.get("message") or choice["delta"])["tool_calls"]
        assert json.loads(told["function"]["arguments"]) == {"a": "😀 \ufffd", "\ufffd": 1}


def test_a_logprob_that_is_no_number_is_openais_very_unlikely():
    tokens = [Token(5, -0.5), Token(6, -math.inf), Token(7, math.nan)]
    entries = replies.logprob_entries(tokens, tiny_tokenizer())
    assert [entry["logprob"] for entry in entries] == [-0.5, -9999.0, -9999.0]
    read(Reply("m", "").whole([replies.choice(0, [], "stop", entries)], replies.usage(1, 3)))


@pytest.mark.parametrize("value", [math.nan, [math.inf], {"a": 10**5000}, {"a": -math.inf}])
def test_what_json_cannot_tell_is_never_written(value: Any):
    with pytest.raises(ValueError):
        strict_json.write(value)


@pytest.mark.parametrize("text", ["NaN", "[1e999]", "-Infinity", "[" * 500 + "]" * 500, '"\\ud83d"', "1" * 5000, "{"])
def test_what_is_no_json_is_never_read(text: str):
    with pytest.raises(ValueError):
        strict_json.read(text)
    assert strict_json.read(strict_json.write({"a": ["é😀", 1.5, None]})) == {"a": ["é😀", 1.5, None]}
