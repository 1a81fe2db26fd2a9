"""Sixty-four clients at once: every request is answered, in full, with its own answer."""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path

import httpx
import pytest

from components.serve.openai_api import parse, to_engine
from model.codec.image import ImageConfig
from model.rollout.embedded import EmbeddedEngine
from tests.components.serve.turns import content, read_turn
from tests.tiny_folders import tiny_tokenizer

CLIENTS = 64


def body(seed: int) -> dict:
    words = random.Random(seed).choices(["lima", "oslo", "which", "capital", "12", "7"], k=4 + seed % 20)
    return {"model": "moonflow", "messages": [{"role": "user", "content": " ".join(words)}], "seed": seed,
            "temperature": 1.0, "max_tokens": 4 + seed % 29}  # fmt: skip


def expected_answers(checkpoint: Path, count: int) -> list[str]:
    """From the bare engine."""
    tokenizer = tiny_tokenizer()
    requests = [to_engine(parse(json.dumps(body(seed)).encode()), tokenizer, ImageConfig(), 256).requests[0]
                for seed in range(count)]  # fmt: skip
    said = []
    for completion in asyncio.run(EmbeddedEngine.load(checkpoint).generate(requests)):
        said.append(content(read_turn(completion.token_ids, offers_tools=False)))
    return said


async def storm(address: str, expected: list[str], seconds: float) -> tuple[int, list[str]]:
    """Answers received, and what was wrong with any."""
    deadline = time.monotonic() + seconds
    answered, wrong = 0, []

    async def one(http: httpx.AsyncClient, client: int) -> None:
        nonlocal answered
        turn = 0
        while turn == 0 or time.monotonic() < deadline:
            seed = (client * 7 + turn) % len(expected)
            said = await (streamed if (client + turn) % 2 else whole)(http, body(seed))
            answered += 1
            if said != expected[seed]:
                wrong.append(f"client {client}, seed {seed}: {said!r} instead of {expected[seed]!r}")
            turn += 1

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=f"{address}/v1", timeout=120, limits=limits) as http:
        await asyncio.gather(*(one(http, client) for client in range(CLIENTS)))
    return answered, wrong


async def whole(http: httpx.AsyncClient, content: dict) -> str:
    reply = await http.post("/chat/completions", json=content)
    return reply.json()["choices"][0]["message"]["content"] if reply.status_code == 200 else reply.text


async def streamed(http: httpx.AsyncClient, content: dict) -> str:
    said, done = "", False
    async with http.stream("POST", "/chat/completions", json=content | {"stream": True}) as reply:
        async for line in reply.aiter_lines():
            done = line == "data: [DONE]"
            if line.startswith("data: {"):
                said += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
            elif done:
                break
    return said if done else f"cut off after {said!r}"


@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.long)])
def test_sixty_four_clients_lose_nothing(address: str, checkpoint: Path, seconds: float):
    expected = expected_answers(checkpoint, 96)
    start = time.monotonic()
    answered, wrong = asyncio.run(storm(address, expected, seconds))
    print(f"{answered} answers to {CLIENTS} clients in {time.monotonic() - start:.1f} s, {len(wrong)} wrong")
    assert not wrong, wrong[:3]
    assert answered >= CLIENTS
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    now = {name: float(value) for name, value in (line.split(" ") for line in lines if line[0] != "#")}
    assert (now["moonflow_requests_in_flight"], now["moonflow_queue_length"], now["moonflow_batch_rows"]) == (0, 0, 0)
