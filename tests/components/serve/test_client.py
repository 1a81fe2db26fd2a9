"""The OpenAI client's own calls: sync, async, streams, tools, choices, thinking."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from tests.tiny_folders import tiny_tokenizer
from tests.waiting import happens

ASK: Any = [{"role": "user", "content": "What is the capital?"}]
TOOLS: Any = [{"type": "function", "function": {"name": "search", "description": "Look something up.",
               "parameters": {"type": "object", "properties": {"query": {"type": "string"}}}}}]  # fmt: skip


@pytest.fixture(scope="module")
def scripted(scripted_address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{scripted_address}/v1", api_key="none", max_retries=0, timeout=60)


def test_tools_are_called_answered_and_called_again(scripted: openai.OpenAI):
    ask: Any = {"model": "moonflow", "tools": TOOLS, "temperature": 0}
    reply = scripted.chat.completions.create(messages=ASK, **ask)
    message = reply.choices[0].message
    assert reply.choices[0].finish_reason == "tool_calls" and message.content == "Let me look"
    call: Any = message.tool_calls[0]
    assert (call.id, call.type, call.function.name) == ("functions.search:0", "function", "search")
    assert call.function.arguments == '{"query": "lima"}'
    # The client's own message object is sent back as it is.
    answered = [*ASK, message, {"role": "tool", "tool_call_id": call.id, "content": "Peru"}]
    again = scripted.chat.completions.create(messages=answered, **ask).choices[0].message
    assert [call.id for call in again.tool_calls] == ["functions.search:1"]


def test_a_stream_of_tools_and_thoughts_adds_up_to_the_whole(scripted: openai.OpenAI):
    ask: Any = {"model": "moonflow", "messages": ASK, "tools": TOOLS, "temperature": 0,
                "extra_body": {"chat_template_kwargs": {"thinking": True}}}  # fmt: skip
    whole = scripted.chat.completions.create(**ask)
    assert whole.choices[0].message.reasoning_content == "hm"  # type: ignore[attr-defined]
    with scripted.chat.completions.create(**ask, stream=True) as stream:
        chunks = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "hm"
    assert "".join(delta.content or "" for delta in deltas) == "Let me look"
    (call,) = [call for delta in deltas for call in delta.tool_calls or []]
    assert (call.index, call.id, call.function.arguments) == (0, "functions.search:0", '{"query": "lima"}')
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "tool_calls"
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_clients_stream_helper_understands_it(scripted: openai.OpenAI):
    with scripted.chat.completions.stream(model="moonflow", messages=ASK, tools=TOOLS, temperature=0) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "Let me look"
    assert final.choices[0].message.tool_calls[0].function.name == "search"


def test_instant_mode_has_no_reasoning_and_tool_choice_none_no_calls(scripted: openai.OpenAI):
    reply = scripted.chat.completions.create(
        model="moonflow", messages=ASK, tools=TOOLS, tool_choice="none", temperature=0,
        extra_body={"chat_template_kwargs": {"thinking": False}},
    )  # fmt: skip
    choice = reply.choices[0]
    assert choice.message.tool_calls is None and choice.finish_reason == "stop"
    assert not hasattr(choice.message, "reasoning_content")
    assert (choice.message.content or "").startswith("Let me look<|tool_calls_section_begin|>")


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_ends_the_answer_before_it(scripted: openai.OpenAI, stream: bool):
    ask: Any = {"model": "moonflow", "messages": ASK, "temperature": 0, "stop": ["me lo"], "stream": stream}
    reply = scripted.chat.completions.create(**ask)
    if stream:
        choices = [chunk.choices[0] for chunk in reply]
        content, reason = "".join(choice.delta.content or "" for choice in choices), choices[-1].finish_reason
    else:
        content, reason = reply.choices[0].message.content, reply.choices[0].finish_reason
        before = len(tiny_tokenizer().encode("Let me look"))
        assert reply.usage.completion_tokens == before  # those after the stop are not charged
    assert (content, reason) == ("Let ", "stop")


def test_choices_are_those_of_their_seeds(client: openai.OpenAI):
    ask: Any = {"model": "moonflow", "messages": ASK, "temperature": 2.0, "max_tokens": 10}
    reply = client.chat.completions.create(**ask, n=3, seed=7)
    alone = [client.chat.completions.create(**ask, seed=7 + index) for index in range(3)]
    said = [choice.message.content for choice in reply.choices]
    assert said == [one.choices[0].message.content for one in alone] and len(set(said)) == 3
    assert reply.usage.prompt_tokens == alone[0].usage.prompt_tokens
    assert reply.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone)
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**ask, n=3, seed=7, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == said


def test_logprobs_have_an_entry_for_every_token(client: openai.OpenAI):
    ask: Any = {"model": "moonflow", "messages": ASK, "temperature": 1.0, "seed": 1, "max_tokens": 8, "logprobs": True}
    reply = client.chat.completions.create(**ask)
    entries = reply.choices[0].logprobs.content
    assert len(entries) == reply.usage.completion_tokens and all(entry.logprob < 0 for entry in entries)
    text = b"".join(bytes(entry.bytes) for entry in entries).decode(errors="replace")
    assert text.startswith(reply.choices[0].message.content)
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**ask, stream=True)]
    assert [e.logprob for c in chunks if c.logprobs for e in c.logprobs.content] == [e.logprob for e in entries]


def test_the_async_client_streams_many_at_once(address: str):
    async def one(client: openai.AsyncOpenAI, seed: int, stream: bool) -> str:
        ask: Any = {"model": "moonflow", "messages": ASK, "temperature": 2.0, "seed": seed, "max_tokens": 12}
        if not stream:
            return (await client.chat.completions.create(**ask)).choices[0].message.content
        said = ""
        async for chunk in await client.chat.completions.create(**ask, stream=True):
            said += chunk.choices[0].delta.content or ""
        return said

    async def all_of_them() -> tuple[list[str], list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            whole = await asyncio.gather(*(one(client, seed, False) for seed in range(8)))
            return whole, await asyncio.gather(*(one(client, seed, True) for seed in range(8)))

    whole, streamed = asyncio.run(all_of_them())
    assert whole == streamed and len(set(whole)) == 8


def long_seed(client: openai.OpenAI) -> int:
    """A seed with which the random model talks for long."""
    for seed in range(20):
        reply = client.chat.completions.create(
            model="moonflow", messages=ASK, temperature=1.0, seed=seed, max_tokens=200
        )
        if reply.usage.completion_tokens == 200:
            return seed
    raise AssertionError("no seed of 20 gives a long answer")


def test_tokens_are_streamed_as_they_are_made_and_a_client_that_leaves_frees_its_row(
    address: str, client: openai.OpenAI, read_metrics: Callable[[], dict[str, float]]
):
    seed = long_seed(client)
    before = read_metrics()
    body = {"model": "moonflow", "messages": ASK, "temperature": 1.0, "seed": seed, "max_tokens": 200}
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body | {"stream": True}, timeout=60) as stream:
        next(stream.iter_lines())
        made = read_metrics()["moonflow_completion_tokens_total"] - before["moonflow_completion_tokens_total"]
        assert made < 200  # the first event came before the last token was made
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{address}/v1/chat/completions", json=body, timeout=httpx.Timeout(60, read=0.01))

    def idle() -> bool:
        now = read_metrics()
        return not now["moonflow_batch_rows"] and not now["moonflow_requests_in_flight"]

    assert happens(idle), read_metrics()
    after = read_metrics()
    assert after["moonflow_completion_tokens_total"] - before["moonflow_completion_tokens_total"] < 400
    left = 'moonflow_requests_total{status="499"}'
    assert after[left] - before.get(left, 0) == 2
