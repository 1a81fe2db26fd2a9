"""Rollouts over chat completions, against a small host that answers as OpenAI's API does."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from components.serve.openai_api import parse, to_engine
from model.boundary.errors import MoonflowError, Unavailable
from model.codec.chat import encode_chat, encode_turns, parse_assistant
from model.codec.image import ImageConfig
from model.data.samples.tokenize import tokenize_prompt
from model.rl.environment import Episode, run_episode
from model.rl.tools.toolset import Toolset
from model.rollout.chat_engine import ChatEngine
from model.rollout.protocol import Completion, Request
from tests.engine_hosts import ChatHost
from tests.reference import next_turn
from tests.tiny_folders import TASKS, eval_samples, tiny_tokenizer

T = tiny_tokenizer()
CONTEXT = 4096


@pytest.fixture
def host() -> Iterator[ChatHost]:
    with ChatHost() as host:
        yield host


def engine(host: ChatHost) -> ChatEngine:
    return ChatEngine(host.url, "k25", T, backoff_s=0.01)


def prompt_of(family: str, number: int = 0, **fields: Any) -> Request:
    prompt = tokenize_prompt(eval_samples(family, number + 1)[number], T, ImageConfig())
    return Request(
        prompt.input_ids.tolist(), prompt.pixel_values, prompt.grid_thws,
        **{"max_new_tokens": 24, "temperature": 0.0, "stop_token_ids": (T.im_end_id,), **fields},
    )  # fmt: skip


def complete(host: ChatHost, request: Request) -> Completion:
    return asyncio.run(engine(host).generate([request]))[0]


@pytest.mark.parametrize("family", [name for name in TASKS if not name.startswith("video")])
def test_what_arrives_is_the_same_prompt_to_our_own_server(host: ChatHost, family: str) -> None:
    """Its reading of messages, tools and pictures is another code than the one that wrote them."""
    request = prompt_of(family, temperature=0.7, top_p=0.9, seed=5)
    complete(host, request)
    ((path, body),) = host.seen
    assert path == "/v1/chat/completions" and body["model"] == "k25"
    read = to_engine(parse(json.dumps(body).encode()), T, ImageConfig(), CONTEXT).requests[0]
    assert read.input_ids == request.input_ids and read.grid_thws == request.grid_thws
    if request.pixel_values is None:
        assert read.pixel_values is None
    else:
        assert read.pixel_values is not None and torch.equal(read.pixel_values, request.pixel_values)
    assert (read.max_new_tokens, read.temperature, read.top_p, read.seed) == (24, 0.7, 0.9, 5)


def test_thinking_is_asked_for_and_its_tokens_come_back(host: ChatHost) -> None:
    ids = encode_chat([{"role": "user", "content": "Hi"}], [], T, add_generation_prompt=True, thinking=True).ids
    thought, end = T.encode("a b"), T.token_id("</think>")
    request = Request(ids, None, [], max_new_tokens=24, temperature=0.0, stop_token_ids=(T.im_end_id,))
    host.script = [
        (200, said("Lima", "stop", reasoning_content="a b")), (200, said("a b</think>Lima", "stop")),
        (200, said("", "length", reasoning_content="a b")), (200, said("Lima", "stop")),
    ]  # fmt: skip
    parsed, unparsed, cut, instant = (complete(host, request).token_ids for _ in range(4))
    assert parsed == unparsed == [*thought, end, *T.encode("Lima"), T.im_end_id]
    assert cut == thought and instant == [end, *T.encode("Lima"), T.im_end_id]
    assert host.seen[0][1]["chat_template_kwargs"] == {"thinking": True}
    read = to_engine(parse(json.dumps(host.seen[0][1]).encode()), T, ImageConfig(), CONTEXT).requests[0]
    assert read.input_ids == ids


def test_answers_are_tokens_again(host: ChatHost) -> None:
    host.script = [(200, said("Lima", "stop")), (200, said("Li", "length")), (200, said("", "abort"))]
    stopped, cut, aborted = (complete(host, prompt_of("fact_qa")) for _ in range(3))
    assert stopped == Completion([*T.encode("Lima"), T.im_end_id], [0.0] * (len(T.encode("Lima")) + 1), "stop")
    assert (cut.token_ids, cut.finish_reason) == (T.encode("Li"), "length")
    assert aborted.finish_reason == "abort"


def said(content: str | None, reason: Any, **message: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"content": content, **message}, "finish_reason": reason}]}


def test_an_answer_longer_than_allowed_is_cut(host: ChatHost) -> None:
    host.script = [(200, said("a b c d e f", "stop"))]
    completion = complete(host, prompt_of("fact_qa", max_new_tokens=3))
    assert (len(completion.token_ids), completion.finish_reason) == (3, "length")


def test_a_turn_that_the_server_could_not_parse_is_malformed_here_too(host: ChatHost) -> None:
    host.script = [(200, said("look<|tool_calls_section_begin|>nothing", "stop"))]
    turn = parse_assistant(complete(host, prompt_of("sub_search")).token_ids, T)
    assert turn.content == "look" and "malformed" in str(turn.error)


def test_calls_are_numbered_over_the_conversation_whatever_ids_the_server_gives(host: ChatHost) -> None:
    call = {"id": "call_9f", "type": "function", "function": {"name": "search", "arguments": '{"query":"Höhe"}'}}
    host.script = [(200, said(None, "tool_calls", tool_calls=[call, {**call, "id": "call_a0"}]))]
    request = prompt_of("sub_search", max_new_tokens=64)
    sampled = complete(host, request).token_ids
    calls = parse_assistant(sampled, T).tool_calls
    assert [call.id for call in calls] == ["functions.search:0", "functions.search:1"]
    assert calls[1].arguments == {"query": "Höhe"}
    results = [{"role": "tool", "tool_call_id": call.id, "content": "8848"} for call in calls]
    host.script = [(200, said(None, "tool_calls", tool_calls=[call]))]
    later = replace(request, input_ids=request.input_ids + sampled + encode_turns(results, T, 0))
    (third,) = parse_assistant(complete(host, later).token_ids, T).tool_calls
    assert third.id == "functions.search:2"
    sent = host.seen[-1][1]["messages"]
    assert [m["role"] for m in sent[-3:]] == ["assistant", "tool", "tool"]
    assert [m["tool_call_id"] for m in sent[-2:]] == [c["id"] for c in sent[-3]["tool_calls"]]


@pytest.mark.parametrize("family", ["sub_search", "array_tool", "array_tool_image"])
def test_an_episode_with_tools_is_played_to_its_answer(host: ChatHost, family: str) -> None:
    """The server calls tools as the reference does; they run here, and their results go back as messages."""
    sample = eval_samples(family, 1)[0]
    host.reply = lambda body: next_turn(body, [sample])

    async def play() -> Episode:
        with Toolset() as toolset:
            return await run_episode(
                engine(host), T, sample, ImageConfig(), toolset, max_turns=4, max_new_tokens=64, temperature=0.0,
                seed=0, max_tokens=CONTEXT,
            )  # fmt: skip

    episode = asyncio.run(play())
    assert (episode.finish_reason, episode.correct, episode.metrics["tool_calls"]) == ("answer", True, 1.0)


def test_overload_is_retried_and_then_told(host: ChatHost) -> None:
    host.script = [(503, "busy"), (500, "oops")]
    assert complete(host, prompt_of("fact_qa")).finish_reason == "stop" and len(host.seen) == 3
    host.script = [(503, "busy")] * 9
    with pytest.raises(MoonflowError, match="failed 4 times, last: HTTP 503") as told:
        complete(host, prompt_of("fact_qa"))
    assert len(host.seen) == 7 and not isinstance(told.value, Unavailable)


def strict(host: ChatHost, status: int) -> None:
    """Let the host refuse every field that OpenAI's API does not have, as strict servers do: by its name."""
    known = {"model", "messages", "max_tokens", "temperature", "top_p", "seed", "tools"}

    def answer(path: str, body: Any) -> tuple[int, Any]:
        for name in body.keys() - known:
            return status, {"error": {"message": f"Unrecognized request argument supplied: {name}"}}
        return ChatHost.answer(host, path, body)

    host.answer = answer  # type: ignore[method-assign]


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_the_field_of_the_mode_never_gets_it_again(
    host: ChatHost, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    strict(host, status)
    with caplog.at_level(logging.WARNING, "model.rollout.chat_engine"):
        asking, requests = engine(host), [prompt_of("fact_qa", number) for number in range(3)]
        first = asyncio.run(asking.generate(requests))
        assert [completion.finish_reason for completion in first] == ["stop"] * 3
        sent = len(host.seen)
        assert 4 <= sent <= 6, "each is asked again once, unless it was known before"
        asyncio.run(asking.generate(requests))
    assert len(host.seen) == sent + 3
    assert all("chat_template_kwargs" not in body for _, body in host.seen[sent:])
    (line,) = caplog.messages
    assert line.startswith(f"the server at {host.url} refuses chat_template_kwargs: it is asked without")


def test_another_refusal_does_not_cost_the_mode(host: ChatHost, caplog: pytest.LogCaptureFixture) -> None:
    """Some servers repeat the request in their error: without the field, it is refused as well."""
    echo = (400, {"error": {"message": "too long", "request": {"chat_template_kwargs": {}}}})
    host.script = [echo, (400, {"error": {"message": "too long", "request": {}}})]
    asking = engine(host)
    with pytest.raises(MoonflowError, match="HTTP 400: .*too long"):
        asyncio.run(asking.generate([prompt_of("fact_qa")]))
    asyncio.run(asking.generate([prompt_of("fact_qa")]))
    assert ["chat_template_kwargs" in body for _, body in host.seen] == [True, False, True] and not caplog.messages


@pytest.mark.parametrize(("status", "body", "told"), [
    (400, {"error": {"message": "too long"}}, "HTTP 400: .*too long"),
    (200, [], "HTTP 200"),
    (200, {"choices": []}, "no chat completion"),
    (200, said("x", "tired"), "'tired'"),
    (200, said("x", "tool_calls", tool_calls=[{"function": "search"}]), "no chat completion"),
    (200, said("x", "tool_calls", tool_calls=["search"]), "no chat completion"),
])  # fmt: skip
def test_refusals_and_foreign_answers_are_told_at_once(host: ChatHost, status: int, body: Any, told: str) -> None:
    host.script = [(status, body)]
    with pytest.raises(MoonflowError, match=told):
        complete(host, prompt_of("fact_qa"))
    assert len(host.seen) == 1


def test_videos_and_other_weights_are_refused_before_anything_is_sent(host: ChatHost, tmp_path: Path) -> None:
    with pytest.raises(MoonflowError, match="video"):
        complete(host, prompt_of("video_digits"))
    with pytest.raises(MoonflowError, match="start it with that checkpoint"):
        asyncio.run(engine(host).update_weights(tmp_path))
    assert host.seen == []


def test_an_absent_server_is_told() -> None:
    absent = ChatEngine("http://127.0.0.1:9", "k25", T, attempts=2, backoff_s=0.01)
    with pytest.raises(Unavailable, match="the server at http://127.0.0.1:9/v1/.* failed 2 times"):
        asyncio.run(absent.generate([prompt_of("fact_qa")]))
