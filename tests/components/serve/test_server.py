"""The endpoint over real HTTP, with the OpenAI client, on a tiny model with random weights."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest
from PIL import Image

from components.release.fetch import verify
from components.serve import chat
from components.serve.chat import MAX_BODY_BYTES
from components.serve.limits import MAX_ERROR_CHARACTERS
from components.serve.openai_api import ChatRequest, to_engine
from components.serve.stage import serving
from model.boundary.errors import MoonflowError
from model.codec.chat import encode_chat
from model.codec.image import ImageConfig
from model.rollout.embedded import EmbeddedEngine
from tests.components.serve.media_messages import data_url, showing
from tests.odd_media import file, noise, png
from tests.tiny_folders import tiny_tokenizer

ASK = [{"role": "user", "content": "Which digits?"}]


def picture(height: int = 28, width: int = 84) -> str:
    return data_url(file(Image.fromarray(noise(height, width))))


def test_ready_with_the_manifest_it_verified(address: str, checkpoint: Path):
    health = httpx.get(f"{address}/health")
    assert (health.status_code, health.json()) == (200, {"status": "ready", "manifest_sha256": verify(checkpoint)})
    assert len(verify(checkpoint)) == 64


def test_models(client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == ["moonflow"]
    assert client.models.retrieve("moonflow").id == "moonflow"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


def test_an_answer_is_the_engines_own(client: openai.OpenAI, checkpoint: Path):
    reply = client.chat.completions.create(model="moonflow", messages=ASK, temperature=0, max_tokens=12)
    tokenizer = tiny_tokenizer()
    asked = ChatRequest(model="moonflow", messages=ASK, temperature=0, max_tokens=12)
    (request,) = to_engine(asked, tokenizer, ImageConfig(), 256).requests
    assert request.input_ids == encode_chat(ASK, [], tokenizer, add_generation_prompt=True).ids
    completion = asyncio.run(EmbeddedEngine.load(checkpoint).generate([request]))[0]
    assert reply.usage.completion_tokens == len(completion.token_ids)
    assert reply.usage.prompt_tokens == len(request.input_ids)
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    expected = "length" if completion.finish_reason == "length" else "stop"
    assert reply.choices[0].finish_reason == expected
    body = [token for token in completion.token_ids if token != tokenizer.im_end_id]
    assert reply.choices[0].message.content in tokenizer.decode(body)


def test_a_picture_is_seen(client: openai.OpenAI):
    def prompt_tokens(*parts) -> int:
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "Which digits?"}]}]
        reply = client.chat.completions.create(model="moonflow", messages=messages, temperature=0, max_tokens=2)
        return reply.usage.prompt_tokens

    small = {"type": "image_url", "image_url": {"url": picture(28, 28)}}
    wide = {"type": "image_url", "image_url": {"url": picture(28, 84)}}
    assert prompt_tokens(wide) - prompt_tokens(small) == 2  # 28 x 28 pixels are one token
    assert prompt_tokens(small, wide) > prompt_tokens(wide) > prompt_tokens()


def test_a_stream_has_the_same_content(client: openai.OpenAI):
    ask = {"model": "moonflow", "messages": ASK, "temperature": 0, "max_tokens": 12}
    whole = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason


@pytest.mark.parametrize(("change", "message"), [
    ({"messages": []}, "messages"),
    ({"messages": [1]}, "messages.0"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"top_p": 0}, "top_p"),
    ({"n": 0}, "n: "),
    ({"n": 65}, "n: "),
    ({"seed": 2**64}, "seed"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop takes up to 4"),
    ({"stop": ""}, "stop takes up to 4"),
    ({"stop": ["x" * 257]}, "up to 256 characters"),
    ({"n": 64, "max_tokens": 5000}, "more than 262,144"),
    ({"temperature": float("inf")}, "not JSON"),
    ({"temperature": float("nan")}, "not JSON"),
    ({"messages": ASK * 4097}, "at most 4096 items"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 4097}]}, "more than 4096 content"),
    ({"messages": ASK, "x" * 2000: 1}, "x" * 400),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"top_logprobs": 2, "logprobs": True}, "top_logprobs"),
    ({"top_k": 3}, "top_k is not supported"),
    ({"stream_options": {"include_usage": True}}, "only for stream"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"chat_template_kwargs": {"thinking": "no"}}, "thinking must be true or false"),
    ({"chat_template_kwargs": {"enable_thinking": True}}, "no 'enable_thinking'"),
    ({"messages": [{"role": "wizard", "content": "hi"}]}, "role 'wizard'"),
    ({"messages": [{"role": "user"}]}, "content must be"),
    ({"messages": [*ASK, {"role": "assistant", "content": "1"}]}, "last message is the assistant's"),
    ({"messages": [*ASK, {"role": "tool", "tool_call_id": "x", "content": "1"}]}, "answers no call"),
    ({"messages": showing("", kind="audio")}, "unknown content part 'audio'"),
    ({"messages": showing("http://x/y.png")}, "data URL"),
    ({"messages": showing("data:image/png;base64,!!")}, "base64"),
    ({"messages": showing("data:image/png;base64,AAAA")}, "cannot be decoded"),
    ({"messages": showing(picture()[:-40] + "AAAA")}, "cannot be decoded"),
    ({"messages": showing(png(9_000, 9_000, 8, 2, b""))}, "9,000 x 9,000 pixels: give at most 50,000,000"),
    ({"messages": showing("data:video/mp4;base64,AAAA", kind="video_url")}, "video of 3 bytes cannot be decoded"),
    ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "function.name"),
])  # fmt: skip
def test_a_bad_request_is_told_in_openais_shape(address: str, change: dict, message: str):
    body = {"model": "moonflow", "messages": ASK, "max_tokens": 4} | change
    reply = httpx.post(f"{address}/v1/chat/completions", content=json.dumps(body))
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert max(len(error["message"]), len(error["param"] or "")) <= MAX_ERROR_CHARACTERS
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert message in error["message"]


@pytest.mark.parametrize("change", [{"max_tokens": 10_000}, {"messages": [{"role": "user", "content": "lima " * 500}]}])
def test_what_does_not_fit_the_context_has_openais_code(client: openai.OpenAI, change: dict):
    with pytest.raises(openai.BadRequestError, match="exceed the context of 256 tokens") as told:
        client.chat.completions.create(**({"model": "moonflow", "messages": ASK} | change))
    assert told.value.code == "context_length_exceeded"


def test_optional_fields_may_be_null_and_those_about_the_caller_are_let_through(address: str):
    nulls = dict.fromkeys(
        ("n", "stop", "tools", "tool_choice", "seed", "top_p", "stream", "stream_options", "logprobs")
    )
    about = {"user": "u", "metadata": {"k": "v"}, "frequency_penalty": 0.0, "response_format": {"type": "text"}}
    reply = httpx.post(f"{address}/v1/chat/completions",
                       json={"model": "moonflow", "messages": ASK, "max_tokens": 2} | nulls | about)  # fmt: skip
    assert reply.status_code == 200, reply.text


def in_pieces(size: int) -> Iterator[bytes]:
    for _ in range(size // 2**20 + 1):
        yield b" " * 2**20


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large_is_refused(address: str, announced: bool):
    content = b" " * (MAX_BODY_BYTES + 1) if announced else in_pieces(MAX_BODY_BYTES)
    reply = httpx.post(f"{address}/v1/chat/completions", content=content)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")


def test_a_full_queue_is_told_so_that_clients_try_again(address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chat, "MAX_WAITING", 0)
    reply = httpx.post(f"{address}/v1/chat/completions", json={"model": "moonflow", "messages": ASK})
    assert (reply.status_code, reply.json()["error"]["code"], reply.headers["retry-after"]) == (503, "overloaded", "1")


def test_another_model_is_not_found(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError, match="does not exist") as told:
        client.chat.completions.create(model="gpt", messages=ASK)
    assert (told.value.code, told.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("content", [b"{", b"", b"[]", b"\xff", b"[" * 100_000, b'{"model": "\\ud800"}'])
def test_broken_json_has_the_same_shape(address: str, content: bytes):
    broken = httpx.post(f"{address}/v1/chat/completions", content=content)
    assert (broken.status_code, broken.json()["error"]["type"]) == (400, "invalid_request_error")


def test_unknown_paths_and_methods_have_the_same_shape(address: str):
    for reply, status in ((httpx.get(f"{address}/v1/embeddings"), 404),
                          (httpx.get(f"{address}/v1/chat/completions"), 405)):  # fmt: skip
        assert (reply.status_code, reply.json()["error"]["type"]) == (status, "invalid_request_error")


def test_metrics_count_requests_tokens_and_waiting(client: openai.OpenAI, read_metrics: Callable[[], dict[str, float]]):
    before = read_metrics()
    reply = client.chat.completions.create(model="moonflow", messages=ASK, temperature=0, max_tokens=3)
    after = read_metrics()
    key = 'moonflow_requests_total{status="200"}'
    assert after[key] == before.get(key, 0) + 1
    for name in ("prompt", "completion"):
        used = after[f"moonflow_{name}_tokens_total"] - before[f"moonflow_{name}_tokens_total"]
        assert used == getattr(reply.usage, f"{name}_tokens")
    for name in ("time_to_first_token_seconds", "request_seconds"):
        assert after[f"moonflow_{name}_count"] == before[f"moonflow_{name}_count"] + 1
        assert after[f"moonflow_{name}_sum"] > before[f"moonflow_{name}_sum"]
    assert after["moonflow_tokens_per_second"] > 0
    for name in ("requests_in_flight", "queue_length", "batch_rows"):
        assert after[f"moonflow_{name}"] == 0


def test_a_damaged_checkpoint_is_never_served(checkpoint: Path, tmp_path: Path):
    damaged = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, damaged)
    weights = damaged / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with (
        pytest.raises(MoonflowError, match="model.safetensors is missing or is not what"),
        serving(damaged, "moonflow", 30),
    ):
        pass


def test_a_damaged_manifest_is_named(checkpoint: Path, tmp_path: Path):
    (tmp_path / "manifest.json").write_text(json.dumps({"uri": 1}))
    with pytest.raises(MoonflowError, match=r"manifest\.json is damaged"):
        verify(tmp_path)
