"""The embedded engine against the network's own forward pass without a cache."""

from __future__ import annotations

import asyncio
import copy
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.boundary.errors import MoonflowError
from model.checkpoint.export import save_model
from model.network.config import preset
from model.network.initial import new_model
from model.network.kernel_cached import CachedForward
from model.network.multimodal import KimiK25
from model.network.served import PublishedCopy
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Completion, Request
from model.rollout.sampling import uniforms
from tests.drawn import PAD, pixels
from tests.uncached import full_logits, full_logprobs


def text_request(seed: int, length: int, **fields) -> Request:
    ids = random.Random(seed).choices(range(768), k=length)
    return Request(input_ids=ids, seed=seed, **fields)


def image_request(seed: int, grids: list[tuple[int, int, int]], **fields) -> Request:
    """Text, then each medium's pads, then text."""
    ids = random.Random(seed).choices(range(768), k=5)
    for _, h, w in grids:
        ids += [PAD] * (h * w // 4) + [9]
    return Request(input_ids=ids, pixel_values=pixels(grids, seed), grid_thws=grids, seed=seed, **fields)


def mixed_requests(**fields) -> list[Request]:
    lengths = random.Random(0)
    requests = [
        text_request(seed, lengths.randint(1, 90), max_new_tokens=lengths.randint(1, 40), **fields)
        for seed in range(20)
    ]
    grids = [[(1, 2, 2)], [(1, 2, 6)], [(4, 4, 4), (2, 4, 4)], [(1, 6, 8)], [(1, 2, 6)]]
    return requests + [image_request(seed, grid, max_new_tokens=12, **fields) for seed, grid in enumerate(grids, 50)]


def run(engine: EmbeddedEngine, requests: list[Request]) -> list[Completion]:
    return asyncio.run(engine.generate(requests))


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


def test_other_precisions_keep_prefixes_too(tiny_model):
    request = text_request(3, 40, max_new_tokens=9, temperature=0.0)
    exact = episode(EmbeddedEngine(tiny_model), request, RESULTS)
    wide = EmbeddedEngine(copy.deepcopy(tiny_model).double())
    for engine in (wide, EmbeddedEngine(tiny_model, prompt_products=torch.float32)):
        for ours, theirs in zip(exact, episode(engine, request, RESULTS), strict=True):
            assert ours.token_ids == theirs.token_ids
            assert ours.logprobs == pytest.approx(theirs.logprobs, abs=2e-4)
