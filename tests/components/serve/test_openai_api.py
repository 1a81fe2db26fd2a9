"""A chat as the engine is asked it."""

from __future__ import annotations

import json

from components.serve.openai_api import Asked, ChatRequest, to_engine
from model.codec.chat import encode_chat
from model.codec.image import ImageConfig
from tests.tiny_folders import tiny_tokenizer

T = tiny_tokenizer()
ASK = [{"role": "user", "content": "Which digits?"}]


def asked(**fields) -> Asked:
    chat = ChatRequest.model_validate_json(json.dumps({"model": "m", "messages": ASK} | fields))
    return to_engine(chat, T, ImageConfig(), 512)


def test_thinking_opens_the_turn_and_changes_the_default_temperature():
    requests = [asked(chat_template_kwargs={"thinking": thinking}).requests[0] for thinking in (True, False)]
    assert requests[0].input_ids[-1] == T.token_id("<think>")
    assert requests[1].input_ids[-1] == T.token_id("</think>")
    assert [request.temperature for request in requests] == [1.0, 0.6]
    assert asked().requests[0].input_ids == requests[1].input_ids


def test_choices_share_a_prompt_and_differ_in_their_seeds():
    requests = asked(n=3, seed=2**63 - 2).requests
    assert len({tuple(request.input_ids) for request in requests}) == 1
    assert [request.seed for request in requests] == [2**63 - 2, 2**63 - 1, 2**63]
    assert asked(seed=5).requests == asked(seed=5).requests
    assert asked().requests[0].seed != asked().requests[0].seed


def test_a_conversation_with_tools_is_rendered_as_in_training_whatever_ids_the_caller_gave():
    def theirs(identity: str, query: str) -> dict:
        function = {"name": "search", "arguments": json.dumps({"query": query})}
        return {"id": identity, "type": "function", "function": function}

    def ours(query: str) -> dict:
        return {"name": "search", "arguments": {"query": query}}

    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}, *ASK,
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": [theirs("call_a", "lima")]},
        {"role": "tool", "tool_call_id": "call_a", "content": "Peru"},
        {"role": "assistant", "content": None, "tool_calls": [theirs("call_b", "oslo"), theirs("call_c", "rome")]},
        {"role": "tool", "tool_call_id": "call_c", "content": "Italy"},
        {"role": "tool", "tool_call_id": "call_b", "content": "Norway"},
    ]  # fmt: skip
    expected = [
        {"role": "system", "content": "Be brief."}, *ASK,
        {"role": "assistant", "content": "", "tool_calls": [ours("lima")]},
        {"role": "tool", "tool_call_id": "functions.search:0", "content": "Peru"},
        {"role": "assistant", "content": "", "tool_calls": [ours("oslo"), ours("rome")]},
        {"role": "tool", "tool_call_id": "functions.search:2", "content": "Italy"},
        {"role": "tool", "tool_call_id": "functions.search:1", "content": "Norway"},
    ]  # fmt: skip
    tools = [{"type": "function", "function": {"name": "search", "parameters": {}}}]
    got = asked(messages=messages, tools=tools)
    assert got.requests[0].input_ids == encode_chat(expected, ["search"], T, add_generation_prompt=True).ids
    assert got.calls == 3


def test_tool_choice_none_declares_no_tools():
    tools = [{"type": "function", "function": {"name": "search", "parameters": {}}}]
    assert asked(tools=tools, tool_choice="none").requests[0].input_ids == asked().requests[0].input_ids
    assert asked(tools=tools).prompt_tokens > asked().prompt_tokens


def test_without_a_limit_an_answer_may_fill_the_context():
    request = asked().requests[0]
    assert len(request.input_ids) + request.max_new_tokens == 512
    assert asked(max_tokens=9, max_completion_tokens=7).requests[0].max_new_tokens == 7
