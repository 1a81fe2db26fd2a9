"""Stock SGLang 0.5.23 on an export: its chats, and moonflow's client for rollouts against it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch

from model.boundary.errors import MoonflowError
from model.checkpoint.load import load_model
from model.data.batches.packing import pack
from model.data.samples.tokenize import TokenizedSample
from model.rollout.protocol import Completion, Request
from model.rollout.sglang import SGLangEngine
from tests.engines.chats import TOLERANCE, ask, assert_same
from tests.engines.checkpoint import CONTEXT, write_export
from tests.engines.questions import own_answers
from tests.engines.server import serving
from tests.tiny_folders import tiny_tokenizer

pytestmark = [pytest.mark.engines, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def url(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving("sglang", export, tmp_path_factory.mktemp("sglang") / "sglang.log") as url:
        yield url


@pytest.fixture
def client(url: str) -> SGLangEngine:
    return SGLangEngine(url, tiny_tokenizer().media_pad_id, attempts=1, timeout_s=300.0)


def apart(theirs: Completion, ours: Completion) -> float:
    """Nats between the log-probs of the same tokens."""
    assert theirs.token_ids == ours.token_ids
    return max(abs(a - b) for a, b in zip(theirs.logprobs, ours.logprobs, strict=True))


def test_chats_are_read_and_answered_as_by_moonflow(url, asked, answers):
    assert_same(asked, ask(url, asked), answers)


def test_the_client_gets_the_same_tokens_and_logprobs(client, asked, answers):
    replies = asyncio.run(client.generate([question.request for question in asked]))
    assert max(apart(theirs, ours) for theirs, ours in zip(replies, answers, strict=True)) <= TOLERANCE
    assert {reply.finish_reason for reply in replies} == {"length"}


def test_a_stop_token_ends_the_completion_and_is_part_of_it(client, export, asked, answers):
    stops = [answer.token_ids[20] for answer in answers]
    requests = [replace(question.request, stop_token_ids=(stop,)) for question, stop in zip(asked, stops, strict=True)]
    replies = asyncio.run(client.generate(requests))
    ends = json.loads((export / "generation_config.json").read_text())["eos_token_id"]  # which SGLang heeds, too
    for reply, answer, stop in zip(replies, answers, stops, strict=True):
        until = min(answer.token_ids.index(token) for token in (stop, *ends) if token in answer.token_ids)
        assert reply.token_ids == answer.token_ids[: until + 1]
        assert reply.finish_reason == "stop"


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.3, 0.8)])
def test_sampled_tokens_have_the_logprobs_that_the_policy_gives_them(client, export, asked, temperature, top_p):
    """What importance ratios divide by: log-softmax of logits / temperature, before top-p."""
    requests = [
        replace(question.request, temperature=temperature, top_p=top_p, max_new_tokens=32) for question in asked[::3]
    ]
    replies = asyncio.run(client.generate(requests))
    model, pad = load_model(export), tiny_tokenizer().media_pad_id
    for request, reply in zip(requests, replies, strict=True):
        # A media pad that was sampled stands for no pixels: an episode ends there.
        kept = reply.token_ids[: reply.token_ids.index(pad)] if pad in reply.token_ids else reply.token_ids
        expected = policy_logprobs(model, request, kept)
        torch.testing.assert_close(torch.tensor(reply.logprobs[: len(kept)]), expected, atol=TOLERANCE, rtol=0)
    assert any(min(reply.logprobs) < -6 for reply in replies)  # they were drawn, not chosen


@torch.no_grad()
def policy_logprobs(model: torch.nn.Module, request: Request, token_ids: list[int]) -> torch.Tensor:
    """Nats [tokens], from one forward over prompt and completion without a cache."""
    ids = torch.tensor(request.input_ids + token_ids)
    target = torch.arange(len(ids)) >= len(request.input_ids)
    batch = pack([TokenizedSample(ids, target, request.pixel_values, request.grid_thws)], model.config.pad_token_id)
    return (model(batch) / request.temperature).log_softmax(-1).gather(1, batch.targets_N[:, None])[:, 0]


def test_a_cancelled_call_frees_its_place(client, url, asked):
    request = replace(asked[0].request, max_new_tokens=CONTEXT - 128, temperature=1.0)

    def running() -> int:
        return sum(load["num_running_reqs"] for load in httpx.get(f"{url}/v1/loads", timeout=60.0).json()["loads"])

    async def cancel_while_it_runs() -> None:
        call = asyncio.create_task(client.generate([request]))
        while not await asyncio.to_thread(running):
            await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(20):
            while await asyncio.to_thread(running):
                await asyncio.sleep(0.1)

    asyncio.run(cancel_while_it_runs())


def test_refusals_are_told(client, asked, tmp_path):
    with pytest.raises(MoonflowError, match="HTTP 400"):
        asyncio.run(client.generate([Request([1] * (CONTEXT + 1))]))
    with pytest.raises(MoonflowError, match="HTTP 400"):
        asyncio.run(client.update_weights(tmp_path / "nothing"))


def test_new_weights_answer_after_an_update(client, asked, answers, tmp_path):
    """Last: it changes what the server answers."""
    other = write_export(tmp_path / "other", seed=12)
    expected = own_answers(other, [question.request for question in asked])
    assert all(new.token_ids != old.token_ids for new, old in zip(expected, answers, strict=True))
    asyncio.run(client.update_weights(other))
    replies = asyncio.run(client.generate([question.request for question in asked]))
    assert max(apart(theirs, ours) for theirs, ours in zip(replies, expected, strict=True)) <= TOLERANCE
