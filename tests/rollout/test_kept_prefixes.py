"""What the embedded engine has read is not read again, and changes no bit."""

from __future__ import annotations

import asyncio
import copy
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoint.export import save_model
from model.network.config import preset
from model.network.initial import new_model
from model.network.kernel_cached import CachedForward
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Completion, Request
from tests.drawn import pixels
from tests.rollout.drawn_requests import image_request, mixed_requests, run, text_request


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens of a prompt the engine reads, one number per prompt, in the order of reading."""
    counts: list[int] = []
    original = CachedForward.read

    def counted(self, x_ND, latents, rows, starts, new):
        counts.extend(count for count in new if count > 1)  # others are decode steps, or as short
        return original(self, x_ND, latents, rows, starts, new)

    monkeypatch.setattr(CachedForward, "read", counted)
    return counts


def episode(engine: EmbeddedEngine, request: Request, results: list[list[int]]) -> list[Completion]:
    """The turns of an episode: each prompt is the one before, what was sampled, and a tool's result."""
    turns = []
    for turn in range(len(results) + 1):
        turns += run(engine, [replace(request, seed=request.seed + turn)])
        if turn < len(results):
            request = replace(request, input_ids=[*request.input_ids, *turns[-1].token_ids, *results[turn]])
    return turns


RESULTS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7, 9]]


@pytest.mark.parametrize("media", [False, True])
def test_a_turn_reads_the_last_token_and_what_is_new_with_the_bits_of_a_turn_read_anew(tiny_model, read, media):
    fields = {"max_new_tokens": 9, "temperature": 1.0}
    request = image_request(3, [(1, 2, 6), (4, 4, 4)], **fields) if media else text_request(3, 40, **fields)
    anew = episode(EmbeddedEngine(tiny_model, kept_tokens=0), request, RESULTS)
    whole, read[:] = list(read), []
    assert episode(EmbeddedEngine(tiny_model), request, RESULTS) == anew
    assert read == [len(request.input_ids), *(1 + len(result) for result in RESULTS)]
    assert whole == [len(request.input_ids) + sum(9 + len(result) for result in RESULTS[:n]) for n in range(4)]


def test_a_completion_has_the_same_bits_whatever_is_kept(tiny_model):
    common = random.Random(9).choices(range(768), k=45)
    requests = mixed_requests(temperature=1.0)
    requests += [replace(each, input_ids=[*common, *each.input_ids]) for each in requests]
    expected = run(EmbeddedEngine(tiny_model, kept_tokens=0), requests)
    for kept_tokens in (40, 150, 2**15):
        engine = EmbeddedEngine(tiny_model, max_batch=9, kept_tokens=kept_tokens)
        for seed in range(2):
            order = random.Random(seed).sample(range(len(requests)), len(requests))
            assert run(engine, [requests[index] for index in order]) == [expected[index] for index in order]


def test_what_prompts_begin_with_is_read_once_for_all_that_are_admitted_together(tiny_model, read):
    common = random.Random(9).choices(range(768), k=64)
    requests = [Request([*common, 1 + index, 2, 3], max_new_tokens=3, seed=index) for index in range(5)]
    alone = [run(EmbeddedEngine(tiny_model), [request])[0] for request in requests]
    read.clear()
    assert run(EmbeddedEngine(tiny_model), requests) == alone
    assert read == [67, 3, 3, 3, 3]


def test_the_samples_of_a_prompt_read_it_once_also_if_they_come_late(tiny_model, read):
    request = text_request(3, 50, max_new_tokens=6)
    run(EmbeddedEngine(tiny_model, max_batch=2), [replace(request, seed=seed) for seed in range(6)])
    assert read == [50]


def test_another_picture_at_the_same_place_is_read(tiny_model):
    first, second = (image_request(1, [(1, 6, 8)], max_new_tokens=8) for _ in range(2))
    second = replace(second, pixel_values=pixels([(1, 6, 8)], seed=77))
    engine = EmbeddedEngine(tiny_model)
    assert run(engine, [first]) == run(EmbeddedEngine(tiny_model), [first])
    assert run(engine, [second]) == run(EmbeddedEngine(tiny_model), [second]) != run(engine, [first])


def test_nothing_that_old_weights_read_is_used_with_new_ones(tiny_model, tmp_path: Path):
    request = text_request(1, 40, max_new_tokens=5)
    other, third = (new_model(preset("tiny"), seed=seed).eval() for seed in (99, 98))
    save_model(other, tmp_path)
    engine = EmbeddedEngine(tiny_model)
    run(engine, [request])
    asyncio.run(engine.update_weights(tmp_path))
    assert run(engine, [request]) == run(EmbeddedEngine(other), [request])
    engine.set_model(third)
    assert run(engine, [request]) == run(EmbeddedEngine(third), [request])
    with torch.no_grad():
        for parameter in third.parameters():
            parameter.mul_(1.5)
    assert run(engine, [request]) == run(EmbeddedEngine(third), [request])


def test_other_precisions_keep_prefixes_too(tiny_model):
    request = text_request(3, 40, max_new_tokens=9, temperature=0.0)
    exact = episode(EmbeddedEngine(tiny_model), request, RESULTS)
    wide = EmbeddedEngine(copy.deepcopy(tiny_model).double())
    for engine in (wide, EmbeddedEngine(tiny_model, prompt_products=torch.float32)):
        for ours, theirs in zip(exact, episode(engine, request, RESULTS), strict=True):
            assert ours.token_ids == theirs.token_ids
            assert ours.logprobs == pytest.approx(theirs.logprobs, abs=2e-4)
