"""The embedded engine against the network's own forward pass without a cache."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.boundary.errors import MoonflowError
from model.checkpoint.export import save_model
from model.network.config import preset
from model.network.initial import new_model
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Completion, Request
from tests.drawn import PAD
from tests.rollout.drawn_requests import mixed_requests, run, text_request
from tests.uncached import full_logits


def test_greedy_is_the_argmax_of_the_full_forward_at_every_step(tiny_model):
    requests = mixed_requests(temperature=0.0)
    for request, completion in zip(requests, run(EmbeddedEngine(tiny_model, max_batch=7), requests), strict=True):
        assert len(completion.token_ids) == request.max_new_tokens and completion.finish_reason == "length"
        logits = full_logits(tiny_model, request, completion.token_ids)
        assert completion.token_ids == logits.argmax(-1).tolist()
        expected = logits.log_softmax(-1)[range(len(logits)), completion.token_ids]
        assert torch.tensor(completion.logprobs) == pytest.approx(expected.numpy(), abs=1e-4)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8)])
def test_logprobs_are_those_of_the_full_forward_at_the_sampling_temperature(tiny_model, temperature, top_p):
    requests = mixed_requests(temperature=temperature, top_p=top_p)
    for request, completion in zip(requests, run(EmbeddedEngine(tiny_model), requests), strict=True):
        logits = full_logits(tiny_model, request, completion.token_ids)
        expected = (logits / temperature).log_softmax(-1)[range(len(logits)), completion.token_ids]
        assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_completion_depends_on_its_request_alone_bit_for_bit(tiny_model):
    requests = mixed_requests(temperature=1.0) + mixed_requests(temperature=0.0)
    together = run(EmbeddedEngine(tiny_model, max_batch=64), requests)
    alone = [run(EmbeddedEngine(tiny_model, max_batch=1), [request])[0] for request in requests]
    assert together == alone
    shuffled = random.Random(1).sample(range(len(requests)), len(requests))
    again = run(EmbeddedEngine(tiny_model, max_batch=5), [requests[i] for i in shuffled])
    assert again == [together[i] for i in shuffled]


def test_equal_prompts_with_other_seeds_differ_and_equal_seeds_agree(tiny_model):
    request = text_request(3, 30, max_new_tokens=16)
    # Fresh weights favour the token just read, so the draws are made hot.
    hot = {"max_new_tokens": 16, "temperature": 8.0}
    others = [Request(request.input_ids, seed=seed, **hot) for seed in (3, 3, 4, 5)]
    a, b, c, d = run(EmbeddedEngine(tiny_model), others)
    assert a == b
    assert len({tuple(x.token_ids) for x in (a, c, d)}) == 3


def test_sampling_follows_the_distribution_and_top_p_cuts_its_tail(tiny_model):
    prompt = text_request(11, 12).input_ids
    probs = full_logits(tiny_model, Request(prompt), [0])[0].softmax(-1)
    draws = 4000
    for top_p in (1.0, 0.5):
        requests = [Request(prompt, max_new_tokens=1, seed=seed, top_p=top_p) for seed in range(draws)]
        counts = Counter(c.token_ids[0] for c in run(EmbeddedEngine(tiny_model, max_batch=1000), requests))
        order = probs.argsort(descending=True)
        kept = order[: int((probs[order].cumsum(0) < top_p).sum()) + 1].tolist()
        assert set(counts) <= set(kept)
        mass = probs[kept].sum().item()
        for token in kept[:5]:
            p = probs[token].item() / mass
            assert counts[token] == pytest.approx(draws * p, abs=5 * (draws * p * (1 - p)) ** 0.5)


def test_a_stop_token_ends_the_completion_and_is_part_of_it(tiny_model):
    request = text_request(2, 20, temperature=0.0, max_new_tokens=20)
    free = run(EmbeddedEngine(tiny_model), [request])[0].token_ids
    stop = free[6]
    stopped = Request(request.input_ids, temperature=0.0, max_new_tokens=20, stop_token_ids=(stop,))
    completion = run(EmbeddedEngine(tiny_model), [stopped])[0]
    assert completion.finish_reason == "stop"
    assert completion.token_ids == free[: free.index(stop) + 1]


def test_generation_ends_at_the_model_context(tiny_model):
    context = tiny_model.config.text_config.max_position_embeddings
    completion = run(EmbeddedEngine(tiny_model), [text_request(0, context - 3, max_new_tokens=50)])[0]
    assert len(completion.token_ids) == 3 and completion.finish_reason == "length"


def test_concurrent_callers_share_the_batch_and_get_their_own(tiny_model):
    requests = mixed_requests(temperature=1.0)
    engine = EmbeddedEngine(tiny_model, max_batch=8)

    async def callers() -> list[Completion]:
        async def late(index: int, request: Request) -> Completion:
            for _ in range(index % 5):
                await asyncio.sleep(0)
            return (await engine.generate([request]))[0]

        return await asyncio.gather(*(late(i, request) for i, request in enumerate(requests)))

    assert asyncio.run(callers()) == run(EmbeddedEngine(tiny_model), requests)
    assert run(engine, requests) == run(EmbeddedEngine(tiny_model), requests)  # usable in a second event loop


def test_a_cancelled_caller_stalls_nobody(tiny_model):
    engine = EmbeddedEngine(tiny_model, max_batch=2)
    long = text_request(1, 10, max_new_tokens=400)
    short = [text_request(seed, 10, max_new_tokens=6) for seed in range(5)]

    async def scenario() -> list[Completion]:
        doomed = [asyncio.create_task(engine.generate([long, long])) for _ in range(2)]
        waiting = asyncio.create_task(engine.generate(short))
        for _ in range(5):
            await asyncio.sleep(0)
        for task in doomed:
            task.cancel()
        results = await asyncio.wait_for(waiting, timeout=5)
        assert all(isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(*doomed, return_exceptions=True))
        return results

    assert asyncio.run(scenario()) == run(EmbeddedEngine(tiny_model), short)


def test_update_weights_ends_the_batch_on_the_old_and_starts_the_next_on_the_new(tiny_model, tmp_path: Path):
    other = new_model(preset("tiny"), seed=99).eval()
    save_model(other, tmp_path)
    first, second = text_request(1, 10, max_new_tokens=30), text_request(2, 10, max_new_tokens=8)
    engine = EmbeddedEngine(tiny_model, max_batch=4)

    async def scenario() -> tuple[list[Completion], list[Completion]]:
        running = asyncio.create_task(engine.generate([first]))
        for _ in range(4):
            await asyncio.sleep(0)
        update = asyncio.create_task(engine.update_weights(tmp_path))
        await asyncio.sleep(0)
        later = asyncio.create_task(engine.generate([second]))
        await update
        return await running, await later

    old, new = asyncio.run(scenario())
    assert old == run(EmbeddedEngine(tiny_model), [first])
    assert new == run(EmbeddedEngine(other), [second]) == run(EmbeddedEngine.load(tmp_path), [second])


def test_a_broken_checkpoint_leaves_the_old_weights(tiny_model, tmp_path: Path):
    engine = EmbeddedEngine(tiny_model)
    with pytest.raises(MoonflowError, match=r"config\.json"):
        asyncio.run(engine.update_weights(tmp_path))
    request = text_request(1, 10, max_new_tokens=5)
    assert run(engine, [request]) == run(EmbeddedEngine(tiny_model), [request])


def test_a_shared_training_model_is_sampled_as_it_stands_and_keeps_its_mode(tiny_model):
    trained = new_model(preset("tiny"), seed=5).train()
    engine = EmbeddedEngine(tiny_model)
    engine.set_model(trained)
    request = text_request(1, 10, max_new_tokens=5, temperature=0.0)
    before = run(engine, [request])
    assert trained.training and all(router.training and not router.load_E.any() for router in trained.routers())
    with torch.no_grad():
        trained.language_model.lm_head.weight.mul_(-1.0)
    after = run(engine, [request])
    assert before != after
    logits = full_logits(trained.eval(), request, after[0].token_ids)
    assert after[0].token_ids == logits.argmax(-1).tolist()


def test_set_model_refuses_while_requests_are_in_flight(tiny_model):
    engine = EmbeddedEngine(tiny_model)

    async def scenario() -> None:
        running = asyncio.create_task(engine.generate([text_request(1, 10, max_new_tokens=20)]))
        await asyncio.sleep(0)
        with pytest.raises(MoonflowError, match="in flight"):
            engine.set_model(new_model(preset("tiny")))
        await running

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (Request([]), "empty"),
        (Request([5000]), "outside"),
        (Request([1] * 512), "no room"),
        (Request([1], max_new_tokens=0), "out of range"),
        (Request([1], temperature=-1.0), "out of range"),
        (Request([1], temperature=math.nan), "out of range"),
        (Request([1], temperature=math.inf), "out of range"),
        (Request([1, PAD]), "1 media pads"),
        (Request([1, PAD], pixel_values=torch.zeros(4, 3, 14, 14), grid_thws=[(1, 4, 4)]), "ask for 4"),
    ],
)
def test_impossible_requests_are_told_before_they_touch_the_batch(tiny_model, request_, told):
    engine = EmbeddedEngine(tiny_model)
    good = text_request(1, 10, max_new_tokens=8)

    async def scenario() -> list[Completion]:
        running = asyncio.create_task(engine.generate([good]))
        await asyncio.sleep(0)
        with pytest.raises(MoonflowError, match=told):
            await engine.generate([request_])
        return await running

    assert asyncio.run(scenario()) == run(EmbeddedEngine(tiny_model), [good])


def test_prompts_read_with_narrow_products_give_nearly_the_same_log_probs(tiny_model):
    requests = [replace(request, max_new_tokens=1, temperature=0.0) for request in mixed_requests()]
    exact = run(EmbeddedEngine(tiny_model), requests)
    narrow = run(EmbeddedEngine(tiny_model, prompt_products=torch.bfloat16), requests)
    gaps = [abs(a.logprobs[0] - b.logprobs[0]) for a, b in zip(exact, narrow, strict=True)]
    assert 0 < sum(gaps) / len(gaps) < 0.1
