"""Chats sent to an engine, its answers held against moonflow's own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from model.rollout.protocol import Completion
from tests.engines.questions import Question

# Between two float32 implementations, in nats: up to 4e-5 were seen. Nowhere in moonflow's answers are the two
# likeliest tokens closer than 4.5e-4 (the seeds were chosen for it), so rounding decides none of them.
TOLERANCE = 2e-4


@dataclass(frozen=True)
class Reply:
    prompt_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]


def ask(url: str, asked: Sequence[Question]) -> list[Reply]:
    """All at once, so that the engine batches them."""
    return asyncio.run(_ask(url, asked))


async def _ask(url: str, asked: Sequence[Question]) -> list[Reply]:
    extra = {"return_token_ids": True, "ignore_eos": True, "logprobs": True}
    async with httpx.AsyncClient(base_url=url, timeout=300.0) as client:
        calls = [client.post("/v1/chat/completions", json=question.chat | extra) for question in asked]
        answers = await asyncio.gather(*calls)
    for question, answer in zip(asked, answers, strict=True):
        assert answer.status_code == 200, f"{question.name}: {answer.text[:500]}"
    return [_reply(answer.json()) for answer in answers]


def _reply(body: dict[str, Any]) -> Reply:
    """vLLM and SGLang return ids under different names."""
    choice = body["choices"][0]
    vllm = "prompt_token_ids" in body
    prompt, tokens = (body, choice["token_ids"]) if vllm else (choice, choice["response_token_ids"])
    return Reply(prompt["prompt_token_ids"], tokens, [entry["logprob"] for entry in choice["logprobs"]["content"]])


def assert_same(asked: Sequence[Question], replies: Sequence[Reply], answers: Sequence[Completion]) -> None:
    """The same prompt ids from messages and pictures, the same tokens, and log-probs within TOLERANCE."""
    for question, reply, answer in zip(asked, replies, answers, strict=True):
        assert reply.prompt_ids == question.request.input_ids, f"{question.name}: another prompt"
        assert reply.token_ids == answer.token_ids, f"{question.name}: another answer"
        apart = max(abs(theirs - ours) for theirs, ours in zip(reply.logprobs, answer.logprobs, strict=True))
        assert apart <= TOLERANCE, f"{question.name}: log-probs up to {apart:.1e} apart"
