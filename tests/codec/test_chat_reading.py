"""Prompts read back into messages: what is rendered from them again has the same tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest

from model.boundary.errors import MoonflowError
from model.codec.chat import encode_chat, encode_turns
from model.codec.chat_reading import read_chat
from model.codec.image import ImageConfig
from model.data.samples.tokenize import tokenize_prompt
from tests.tiny_folders import TASKS, eval_samples, tiny_tokenizer

T = tiny_tokenizer()
IMAGES = [family for family in TASKS if not family.startswith("video")]
SEARCH = {"name": "search", "arguments": {"query": "Lima, höchste"}}


def again(messages: list[dict[str, Any]], tools: list[str]) -> list[int]:
    """The tokens of read messages, as the template has them; images have one pad."""
    turns = []
    for message in messages:
        turn = dict(message)
        if "tool_calls" in turn:
            functions = [call["function"] for call in turn["tool_calls"]]
            turn["tool_calls"] = [{"name": f["name"], "arguments": json.loads(f["arguments"])} for f in functions]
        if isinstance(turn["content"], list):
            turn["content"] = [part if part["type"] == "text" else part | {"media": "x"} for part in turn["content"]]
        turns.append(turn)
    return encode_chat(turns, tools, T, add_generation_prompt=True).ids


@pytest.mark.parametrize("family", IMAGES)
def test_the_prompts_of_every_family_come_back(family: str) -> None:
    for sample in eval_samples(family, 4):
        ids = tokenize_prompt(sample, T, ImageConfig()).input_ids.tolist()
        chat = read_chat(ids, T)
        assert chat.tools == sample.tools and chat.calls == 0
        folded = [token for n, token in enumerate(ids) if token != T.media_pad_id or ids[n - 1] != token]
        assert again(chat.messages, chat.tools) == folded


def test_a_conversation_with_calls_and_results_comes_back() -> None:
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Which? <|im_end|>"},
        {"role": "assistant", "content": "I look.", "tool_calls": [SEARCH, SEARCH]},
        {"role": "tool", "tool_call_id": "functions.search:0", "content": "a: 1\n\nb"},
        {"role": "tool", "tool_call_id": "functions.search:1", "content": ""},
    ]
    ids = encode_chat(turns, ["search", "assign_task"], T, add_generation_prompt=True).ids
    chat = read_chat(ids, T)
    assert [message["role"] for message in chat.messages] == [turn["role"] for turn in turns]
    assert (chat.tools, chat.calls) == (["search", "assign_task"], 2)
    assert chat.messages[1]["content"] == "Which? <|im_end|>" and chat.messages[3]["content"] == "a: 1\n\nb"
    call = chat.messages[2]["tool_calls"][1]
    assert (call["id"], call["function"]["arguments"]) == ("functions.search:1", '{"query": "Lima, höchste"}')
    assert again(chat.messages, chat.tools) == ids


def test_thinking_and_its_mode_come_back() -> None:
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "reasoning": "hm", "content": "", "tool_calls": [SEARCH]},
        {"role": "tool", "tool_call_id": "functions.search:0", "content": "x"},
    ]
    for thinking in (True, False):
        chat = read_chat(encode_chat(turns, ["search"], T, add_generation_prompt=True, thinking=thinking).ids, T)
        assert chat.thinking == thinking and chat.messages[1]["reasoning_content"] == "hm"


def test_a_malformed_turn_is_its_text() -> None:
    sample = eval_samples("sub_search", 1)[0]
    ids = tokenize_prompt(sample, T, ImageConfig()).input_ids.tolist()
    broken = [T.token_id("<|tool_calls_section_begin|>"), *T.encode("no call"), T.im_end_id]
    ids += broken + encode_turns([{"role": "system", "content": "error: malformed"}], T, 0)
    chat = read_chat(ids, T)
    assert chat.messages[-2:] == [
        {"role": "assistant", "content": "<|tool_calls_section_begin|>no call"},
        {"role": "system", "content": "error: malformed"},
    ]
    assert chat.calls == 0


def test_what_is_no_prompt_is_told() -> None:
    whole = encode_chat([{"role": "user", "content": "Hi"}], [], T, add_generation_prompt=True).ids
    for ids, told in (
        ([], "open turn"),
        (whole[:-2], "open turn"),
        ([*whole, *T.encode("x")], "open turn"),
        ([*whole, T.im_end_id], "open turn"),
        ([5, *whole], "token 0 of a prompt opens no turn"),
        ([*whole[:1], *T.encode("us"), *whole], "named 'us"),
    ):
        with pytest.raises(MoonflowError, match=told):
            read_chat(ids, T)
    declared = encode_chat([], ["search"], T).ids
    with pytest.raises(MoonflowError, match="declares tools in other words than search"):
        read_chat([*declared[:-1], *T.encode("!"), declared[-1], *whole], T)


def test_a_video_is_refused() -> None:
    sample = eval_samples("video_digits", 1)[0]
    with pytest.raises(MoonflowError, match="kind 'video'"):
        read_chat(tokenize_prompt(sample, T, ImageConfig()).input_ids.tolist(), T)
