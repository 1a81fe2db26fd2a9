"""The embedded engine is given weights while requests are under way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from model.network.config import preset
from model.network.initial import new_model
from model.network.multimodal import KimiK25
from model.network.served import PublishedCopy
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Completion, Request
from model.rollout.sampling import uniforms
from tests.drawn import PAD
from tests.rollout.drawn_requests import image_request, run, text_request
from tests.uncached import full_logprobs


async def switched(
    engine: EmbeddedEngine, requests: list[Request], new: Callable[[], KimiK25], after: int
) -> list[Completion]:
    """Completions during which, once the first request has ``after`` tokens, the engine gets the weights of ``new``."""
    tokens: list[int] = []
    first = engine.submit(requests[0], lambda token, logprob: tokens.append(token))
    others = asyncio.create_task(engine.generate(requests[1:]))
    while len(tokens) < after:
        await asyncio.sleep(0)
    engine.switch_model(new())
    return [await first, *await others]


def test_what_is_in_flight_goes_on_with_new_weights_and_each_token_has_the_log_prob_of_its_own(tiny_model):
    """Text and pictures, more requests than rows; the reference is the whole forward of either model."""
    models = [tiny_model, new_model(preset("tiny"), seed=99).eval()]
    requests = [
        text_request(1, 20, max_new_tokens=12), image_request(2, [(1, 2, 6)], max_new_tokens=9),
        text_request(3, 5, max_new_tokens=20), text_request(4, 30, max_new_tokens=6),
    ]  # fmt: skip
    engine = EmbeddedEngine(tiny_model, max_batch=3)
    found = asyncio.run(switched(engine, requests, lambda: models[1], after=4))
    for request, completion in zip(requests, found, strict=True):
        versions, count = completion.weight_versions, len(completion.token_ids)
        assert count == request.max_new_tokens == len(versions) and versions == sorted(versions)
        assert completion.logprobs == pytest.approx(
            full_logprobs(models, request, completion.token_ids, versions), abs=1e-4
        )
    assert found[0].weight_versions == [0] * 4 + [1] * 8
    assert set(found[1].weight_versions) == {0, 1} and set(found[3].weight_versions) == {1}


def test_nothing_that_old_weights_read_is_used_after_a_switch_in_flight(tiny_model):
    """Neither by a new prompt that begins alike, nor by what was in flight; also if the new weights are in the same
    memory."""
    other = new_model(preset("tiny"), seed=99).eval()
    copies = PublishedCopy()
    for same_memory in (False, True):
        engine = EmbeddedEngine(copies.of(tiny_model))
        request = text_request(1, 40, max_new_tokens=10)
        new = (lambda: copies.of(other)) if same_memory else (lambda: other)
        (found,) = asyncio.run(switched(engine, [request], new, after=4))
        before = run(EmbeddedEngine(tiny_model), [request])[0]
        assert found.token_ids[:4] == before.token_ids[:4] and found.logprobs[:4] == before.logprobs[:4]
        assert run(engine, [request]) == run(EmbeddedEngine(other), [request])
        rest = replace(request, input_ids=[*request.input_ids, *found.token_ids[:4]], temperature=0.0)
        assert run(engine, [rest]) == run(EmbeddedEngine(other), [rest])


def test_a_copy_of_the_published_weights_does_not_change_with_the_model_that_is_trained(tiny_model):
    model, copies = new_model(preset("tiny"), seed=5).train(), PublishedCopy()
    published, before = copies.of(model), {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert not published.training and all(not parameter.requires_grad for parameter in published.parameters())
    assert all(torch.equal(value, before[name]) for name, value in published.state_dict().items())
    places = [value.data_ptr() for value in published.state_dict().values()]
    assert copies.of(model) is published
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in published.state_dict().items())
    assert [value.data_ptr() for value in published.state_dict().values()] == places


def test_a_completion_with_a_media_pad_ends_where_weights_change(tiny_model):
    """Every token is as likely as any other, so the seed says which one is drawn."""
    model = new_model(preset("tiny"), seed=5).eval()
    with torch.no_grad():
        model.language_model.lm_head.weight.zero_()
    draws = (text_request(1, 9, max_new_tokens=9), text_request(2, 9, max_new_tokens=9))
    width = model.config.text_config.vocab_size
    seed = next(seed for seed in range(10**6) if int(uniforms(replace(draws[0], seed=seed))[1] * width) == PAD)
    requests = [replace(draws[0], seed=seed), draws[1]]
    padded, other = asyncio.run(switched(EmbeddedEngine(model), requests, lambda: tiny_model, after=3))
    assert (padded.token_ids[1], len(padded.token_ids), padded.finish_reason) == (PAD, 3, "length")
    assert len(other.token_ids) == 9
