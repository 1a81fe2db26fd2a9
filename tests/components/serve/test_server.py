"""The endpoint over real HTTP, with the OpenAI client, on a tiny model with random weights."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from components.runtime.manifest import Manifest, describe
from components.serve.checkpoint import verify
from components.serve.openai_api import ChatRequest, to_request
from components.serve.stage import serving
from model.chat import encode_chat
from model.errors import MoonflowError
from model.image import ImageConfig
from model.rollout.embedded import EmbeddedEngine
from tests.tiny_folders import tiny_tokenizer, write_checkpoint

ASK = [{"role": "user", "content": "Which digits?"}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint(tmp_path_factory.mktemp("serve") / "checkpoint")
    files = tuple(describe(path, folder) for path in sorted(folder.iterdir()))
    manifest = Manifest(uri="s3://b/run/parl/0", run_id="run", step="parl", index=0, kind="checkpoint", files=files)
    (folder / "manifest.json").write_bytes(manifest.canonical())
    return folder


@pytest.fixture(scope="module")
def address(checkpoint: Path) -> Iterator[str]:
    with serving(checkpoint, "moonflow", 60) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=30)


def data_url(height: int = 28, width: int = 84) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width), np.uint8)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_ready_with_the_manifest_it_verified(address: str, checkpoint: Path):
    health = httpx.get(f"{address}/health")
    assert (health.status_code, health.json()) == (200, {"status": "ready", "manifest_sha256": verify(checkpoint)})
    assert len(verify(checkpoint)) == 64


def test_models(client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == ["moonflow"]


def test_an_answer_is_the_engines_own(client: openai.OpenAI, checkpoint: Path):
    reply = client.chat.completions.create(model="moonflow", messages=ASK, temperature=0, max_tokens=12)
    tokenizer = tiny_tokenizer()
    chat = ChatRequest(model="moonflow", messages=ASK, temperature=0, max_tokens=12)
    request = to_request(chat, tokenizer, ImageConfig(), 512)
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

    small = {"type": "image_url", "image_url": {"url": data_url(28, 28)}}
    wide = {"type": "image_url", "image_url": {"url": data_url(28, 84)}}
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


def test_thinking_opens_the_turn_and_changes_the_default_temperature():
    tokenizer = tiny_tokenizer()
    requests = [
        to_request(
            ChatRequest(model="m", messages=ASK, chat_template_kwargs={"thinking": thinking}),
            tokenizer,
            ImageConfig(),
            512,
        )
        for thinking in (True, False)
    ]
    assert requests[0].input_ids[-1] == tokenizer.token_id("<think>")
    assert requests[1].input_ids[-1] == tokenizer.token_id("</think>")
    assert [request.temperature for request in requests] == [1.0, 0.6]


def test_a_conversation_with_tools_is_rendered_as_in_training():
    tokenizer = tiny_tokenizer()
    call = {
        "id": "functions.search:0",
        "type": "function",
        "function": {"name": "search", "arguments": '{"query": "lima"}'},
    }
    theirs = [*ASK, {"role": "assistant", "content": None, "tool_calls": [call]},
              {"role": "tool", "tool_call_id": "functions.search:0", "content": "Peru"}]  # fmt: skip
    same = {"name": "search", "arguments": {"query": "lima"}}
    ours = [*ASK, {"role": "assistant", "content": "", "tool_calls": [same]},
            {"role": "tool", "tool_call_id": "functions.search:0", "content": "Peru"}]  # fmt: skip
    tools = [{"type": "function", "function": {"name": "search", "parameters": {}}}]
    request = to_request(ChatRequest(model="m", messages=theirs, tools=tools), tokenizer, ImageConfig(), 512)
    assert request.input_ids == encode_chat(ours, ["search"], tokenizer, add_generation_prompt=True).ids


def shown(kind: str, url: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": kind, kind: {"url": url}}]}]


@pytest.mark.parametrize(("change", "message"), [
    ({"messages": []}, "messages"),
    ({"temperature": -1}, "temperature"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 10_000}, "exceed the context of 256 tokens"),
    ({"n": 2}, "n: "),
    ({"stop": ["x"]}, "stop is not supported"),
    ({"messages": [{"role": "wizard", "content": "hi"}]}, "role 'wizard'"),
    ({"messages": [*ASK, {"role": "assistant", "content": "1"}]}, "last message is the assistant's"),
    ({"messages": shown("audio", "")}, "unknown content part 'audio'"),
    ({"messages": shown("image_url", "http://x/y.png")}, "data URL"),
    ({"messages": shown("image_url", "data:image/png;base64,!!")}, "base64"),
    ({"messages": shown("image_url", "data:image/png;base64,AAAA")}, "image"),
    ({"tools": [{"type": "function", "function": {"name": "browser"}}]}, "unknown tool 'browser'"),
])  # fmt: skip
def test_a_bad_request_is_told_in_openais_shape(address: str, change: dict, message: str):
    body = {"model": "moonflow", "messages": ASK, "max_tokens": 4} | change
    reply = httpx.post(f"{address}/v1/chat/completions", json=body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert message in reply.json()["error"]["message"]


def test_another_model_is_not_found(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="gpt", messages=ASK)


def test_broken_json_and_unknown_paths_have_the_same_shape(address: str):
    broken = httpx.post(f"{address}/v1/chat/completions", content=b"{", headers={"content-type": "application/json"})
    assert (broken.status_code, broken.json()["error"]["type"]) == (400, "invalid_request_error")
    unknown = httpx.get(f"{address}/v1/embeddings")
    assert (unknown.status_code, "error" in unknown.json()) == (404, True)


def test_metrics_count_requests_and_tokens(address: str, client: openai.OpenAI):
    def read() -> dict[str, float]:
        lines = httpx.get(f"{address}/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    before = read()
    reply = client.chat.completions.create(model="moonflow", messages=ASK, temperature=0, max_tokens=3)
    after = read()
    key = 'moonflow_requests_total{status="200"}'
    assert after[key] == before.get(key, 0) + 1
    used = after["moonflow_completion_tokens_total"] - before["moonflow_completion_tokens_total"]
    assert used == reply.usage.completion_tokens
    assert after["moonflow_request_seconds_total"] > before["moonflow_request_seconds_total"]
    assert after["moonflow_requests_running"] == 0


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
