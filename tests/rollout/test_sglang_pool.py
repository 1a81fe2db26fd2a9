"""Several replicas as one engine: servers that really generate, that die, hang, fail and come back."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.boundary.errors import MoonflowError, Transient
from model.checkpoint.export import save_model
from model.checkpoint.load import load_model
from model.codec.image import ImageConfig, encode_image
from model.network.config import preset
from model.network.initial import new_model
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Completion, Request
from model.rollout.sglang_pool import SGLangPool
from tests.drawn import randomise
from tests.http_server import nobody
from tests.sglang_replica import SGLangReplica
from tests.uncached import full_logprobs

PAD = preset("tiny").media_placeholder_token_id
SOON = {"backoff_s": 0.01, "probe_s": 0.05, "health_s": 10.0, "patience_s": 20.0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three checkpoints with other weights."""
    made = []
    for seed in range(3):
        model = new_model(preset("tiny"), seed=seed)
        randomise(model, seed, std=0.1)
        folder = tmp_path_factory.mktemp(f"weights-{seed}")
        save_model(model, folder)
        made.append(folder)
    return made


@pytest.fixture
def start(folders: list[Path]) -> Iterator[Callable[[int], list[SGLangReplica]]]:
    with ExitStack() as stack:
        yield lambda count: [stack.enter_context(SGLangReplica(folders[0])) for _ in range(count)]


def pool(replicas: list[SGLangReplica], **settings: Any) -> SGLangPool:
    return SGLangPool([replica.url for replica in replicas], PAD, ImageConfig(), **{**SOON, **settings})


def asked(count: int, tokens: int = 12) -> list[Request]:
    return [Request([5, 6, 7 + n % 50, 8], max_new_tokens=tokens, seed=100 + n) for n in range(count)]


def own(folder: Path, requests: list[Request]) -> list[Completion]:
    return asyncio.run(EmbeddedEngine(load_model(folder)).generate(requests))


def same(found: list[Completion], expected: list[Completion]) -> bool:
    """The same tokens and the same log-probs, bit for bit."""
    return [replace(completion, weights="") for completion in found] == expected


async def rounds(engine: SGLangPool, folder: Path, requests: list[Request]) -> list[Completion]:
    await engine.update_weights(folder)
    return await engine.generate(requests)


def test_replicas_answer_as_the_embedded_engine_each_request_once_and_share_the_load(start, folders):
    replicas, requests = start(3), asked(60)
    for replica in replicas:
        replica.slow_s = 0.02
    engine = pool(replicas)
    assert same(asyncio.run(rounds(engine, folders[1], requests)), own(folders[1], requests))
    served = Counter(answer.seed for replica in replicas for answer in replica.served)
    assert served == {request.seed: 1 for request in requests}
    assert [len(replica.served) for replica in replicas] == pytest.approx([20, 20, 20], abs=6)
    assert max(replica.most for replica in replicas) <= 26


def test_a_request_with_an_image_has_the_same_bits(start, folders):
    rng = torch.Generator().manual_seed(0)
    pixels, grid = encode_image(
        torch.randint(0, 256, (28, 56, 3), generator=rng, dtype=torch.uint8).numpy(), ImageConfig()
    )
    request = Request([5, PAD, PAD, 6], torch.from_numpy(pixels), [grid], max_new_tokens=8, seed=3)
    found = asyncio.run(rounds(pool(start(1)), folders[2], [request]))
    assert same(found, own(folders[2], [request]))


def test_new_weights_are_proven_by_digest_and_answer_from_then_on(start, folders):
    replicas, requests = start(2), asked(6)
    engine = pool(replicas)

    async def three() -> list[list[Completion]]:
        return [await rounds(engine, folder, requests) for folder in folders]

    for found, folder in zip(asyncio.run(three()), folders, strict=True):
        assert same(found, own(folder, requests))
        assert engine.proven[0] == engine.proven[1] > 50  # all of SGLang's parameters that hold our tensors
    assert len({answer.version for answer in replicas[0].served}) == 3


def test_a_replica_that_keeps_old_weights_or_damages_new_ones_is_never_asked(start, folders):
    replicas, requests = start(3), asked(12)
    replicas[0].refuses_weights = replicas[1].damages_weights = True
    engine = pool(replicas)
    assert same(asyncio.run(rounds(engine, folders[1], requests)), own(folders[1], requests))
    assert engine.usable == [replicas[2].url]
    assert not replicas[0].served and not replicas[1].served


def test_damage_after_a_right_push_is_found_with_no_other_replica_to_compare_with(start, folders):
    (replica,) = start(1)
    engine = pool([replica], patience_s=0.2)

    async def damaged_later() -> None:
        await engine.update_weights(folders[1])
        replica.damages_weights = True
        await engine.update_weights(folders[2])

    with pytest.raises(Transient, match="1 parameters have another digest than those of the checkpoint"):
        asyncio.run(damaged_later())


@pytest.mark.parametrize("fault", ["500", "half"])
def test_a_failed_call_is_repeated_and_counted_once(start, folders, fault):
    replicas, requests = start(2), asked(10)
    replicas[0].faults = [fault] * 4
    assert same(asyncio.run(rounds(pool(replicas), folders[1], requests)), own(folders[1], requests))
    assert not replicas[0].faults


def test_a_killed_replica_loses_nothing_and_comes_back_with_the_weights_of_now(start, folders):
    """It is killed with requests under way, and starts again with the weights of its first start."""
    replicas, requests = start(2), asked(80)
    for replica in replicas:
        replica.slow_s = 0.05
    engine = pool(replicas, at_once=8)

    async def killed() -> list[Completion]:
        await engine.update_weights(folders[1])
        round_ = asyncio.create_task(engine.generate(requests))
        while not replicas[0].served:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(replicas[0].kill)
        before = len(replicas[0].served)
        await asyncio.to_thread(replicas[0].start)
        found = await round_
        async with asyncio.timeout(100):
            while len(replicas[0].served) == before:  # it may come back only after this round
                assert same(await engine.generate(requests[:16]), expected[:16])
        return found

    expected = own(folders[1], requests)
    assert same(asyncio.run(killed()), expected)
    assert len({answer.version for answer in replicas[0].served}) == 1  # never from those of its start
    assert replicas[0].pushes >= 2


def test_a_replica_that_is_restarted_unnoticed_is_found_out_by_its_answers(start, folders):
    replicas, requests = start(2), asked(20)
    engine = pool(replicas)

    async def restarted() -> list[Completion]:
        await engine.update_weights(folders[1])
        replicas[0].kill()
        replicas[0].start()
        return await engine.generate(requests)

    found = asyncio.run(restarted())
    assert same(found, own(folders[1], requests))
    assert any(answer.version == "default" for answer in replicas[0].served)  # it did answer, and was not believed


def test_a_replica_that_hangs_is_dropped_and_asked_again_when_it_answers(start, folders):
    replicas, requests = start(2), asked(40)
    for replica in replicas:
        replica.slow_s = 0.05
    engine = pool(replicas, at_once=4, health_s=1.0)

    async def hung() -> list[Completion]:
        await engine.update_weights(folders[1])
        replicas[0].hangs.set()
        round_ = asyncio.create_task(engine.generate(requests))
        while engine.usable != [replicas[1].url]:
            await asyncio.sleep(0.01)
        replicas[0].hangs.clear()
        return await round_

    assert same(asyncio.run(hung()), own(folders[1], requests))


def test_a_request_that_fails_everywhere_fails_alone(start, folders):
    replicas = start(2)
    engine = pool(replicas, attempts=1)

    async def poisoned() -> list[Any]:
        await engine.update_weights(folders[1])
        for replica in replicas:
            replica.faults = ["500"] * 3
        bad = await asyncio.gather(engine.generate(asked(1)), return_exceptions=True)
        for replica in replicas:
            replica.faults = []
        return [*bad, await engine.generate(asked(4))]

    bad, good = asyncio.run(poisoned())
    assert isinstance(bad, MoonflowError) and not isinstance(bad, Transient) and "HTTP 500" in str(bad)
    assert same(good, own(folders[1], asked(4)))
    assert len(engine.usable) == 2


def test_what_no_replica_takes_is_one_line_at_once_or_after_the_stated_patience(start, folders, tmp_path):
    replicas = start(1)
    engine = pool(replicas, patience_s=0.3)
    empty = tmp_path / "empty"
    shutil.copytree(folders[0], empty)
    (empty / "config.json").unlink()  # which this server needs
    with pytest.raises(MoonflowError, match="no replica takes the weights: .*Failed to get weights"):
        asyncio.run(engine.update_weights(empty))
    with nobody() as url, pytest.raises(Transient, match="no SGLang replica of .* was usable for 0.3 s"):
        asyncio.run(SGLangPool([url], 1, **{**SOON, "attempts": 1, "patience_s": 0.3}).update_weights(folders[1]))

    async def all_die() -> None:
        await engine.update_weights(folders[1])
        replicas[0].kill()
        await engine.generate(asked(5))

    began = time.monotonic()
    with pytest.raises(Transient, match="was usable for 0.3 s"):
        asyncio.run(all_die())
    assert time.monotonic() - began < 15


def test_a_video_is_refused_before_anything_is_sent(start, folders):
    replicas = start(1)
    video = Request([PAD], pixel_values=torch.zeros(8, 3, 14, 14), grid_thws=[(2, 2, 2)])
    with pytest.raises(MoonflowError, match="images only"):
        asyncio.run(rounds(pool(replicas), folders[1], [*asked(2), video]))
    assert not replicas[0].served


def test_another_process_follows_the_weights_that_one_pushes(start, folders):
    replicas, requests = start(2), asked(4)
    pusher, follower = pool(replicas), pool(replicas, pushes=False)

    async def both() -> list[Completion]:
        await pusher.update_weights(folders[2])
        await follower.follow(pusher.weight_version)
        return await follower.generate(requests)

    assert same(asyncio.run(both()), own(folders[2], requests))
    assert [replica.pushes for replica in replicas] == [1, 1]


def test_a_cancelled_caller_leaves_and_the_others_go_on(start, folders):
    replicas = start(1)
    replicas[0].slow_s = 0.1
    engine = pool(replicas, at_once=2)

    async def some_leave() -> list[Completion]:
        await engine.update_weights(folders[1])
        leaving = asyncio.create_task(engine.generate(asked(20)))
        staying = asyncio.create_task(engine.generate(asked(4)))
        await asyncio.sleep(0.05)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        return await staying

    assert same(asyncio.run(some_leave()), own(folders[1], asked(4)))
    assert threading.active_count() < 100


def test_new_weights_break_generations_off_and_the_rest_is_sampled_from_them(start, folders):
    """The reference is the whole forward of either model, without a cache. Nobody is taken for dead."""
    replicas, requests = start(2), asked(6, tokens=40)
    for replica in replicas:
        replica.token_s = 0.002
    engine = pool(replicas, breaks_off=True)

    async def published() -> list[Completion]:
        await engine.update_weights(folders[1])
        playing = asyncio.create_task(engine.generate(requests))
        while min(replica.sampled for replica in replicas) < 15:
            await asyncio.sleep(0.001)
        await engine.update_weights(folders[2])
        late = await engine.generate(requests[:2])
        assert same(late, expected) and set(late[0].weight_versions) == {2}
        return await playing

    expected = own(folders[2], requests[:2])
    found, models = asyncio.run(published()), [load_model(folder) for folder in folders[1:]]
    assert [replica.pushes for replica in replicas] == [2, 2] and len(engine.usable) == 2
    whole = 0
    for request, completion in zip(requests, found, strict=True):
        versions = completion.weight_versions
        assert len(completion.token_ids) == len(versions) and versions == sorted(versions)
        whole += len(versions) == 40 and set(versions) == {1, 2}
        assert len(versions) == 40 or PAD in completion.token_ids  # which has no picture: nothing can follow it
        said = full_logprobs(models, request, completion.token_ids, [version - 1 for version in versions])
        assert completion.logprobs == pytest.approx(said, abs=1e-4)
    assert whole >= 3


def test_a_generation_that_is_broken_off_at_its_stop_token_has_ended(start, folders):
    (replica,), (request,) = start(1), asked(1)
    tokens = own(folders[1], [request])[0].token_ids
    stop = tokens[5]
    request = replace(request, stop_token_ids=(stop,))
    replica.breaks_off_at = stop
    engine = pool([replica], breaks_off=True)

    async def published() -> list[Completion]:
        await engine.update_weights(folders[1])
        playing = asyncio.create_task(engine.generate([request]))
        while replica.sampled <= tokens.index(stop):
            await asyncio.sleep(0.001)
        await engine.update_weights(folders[2])
        return await playing

    (found,) = asyncio.run(published())
    assert same([found], own(folders[1], [request])) and found.finish_reason == "stop"


def test_a_request_that_waits_at_a_replica_when_weights_come_loses_nothing(start, folders):
    """It is aborted before anything is sampled, and so has no tokens, log-probs or weights."""
    replicas, requests = start(1), asked(3)
    replicas[0].slow_s = 60.0
    engine = pool(replicas, breaks_off=True)

    async def published() -> list[Completion]:
        await engine.update_weights(folders[1])
        playing = asyncio.create_task(engine.generate(requests))
        while replicas[0].most < 3:
            await asyncio.sleep(0.001)
        replicas[0].slow_s = 0.0
        await engine.update_weights(folders[2])
        return await playing

    found = asyncio.run(published())
    assert same(found, own(folders[2], requests)) and {v for each in found for v in each.weight_versions} == {2}
    assert len(engine.usable) == 1


def test_a_replica_that_dies_while_weights_are_pushed_loses_nothing(start, folders):
    replicas, requests = start(2), asked(6, tokens=40)
    for replica in replicas:
        replica.token_s = 0.002
    engine = pool(replicas, breaks_off=True)

    async def died() -> list[Completion]:
        await engine.update_weights(folders[1])
        playing = asyncio.create_task(engine.generate(requests))
        while min(replica.sampled for replica in replicas) < 15:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(replicas[0].kill)
        await engine.update_weights(folders[2])
        return await playing

    found = asyncio.run(died())
    assert all(len(each.token_ids) == 40 or PAD in each.token_ids for each in found)
    assert engine.usable == [replicas[1].url]


def test_a_generation_that_a_replica_gives_up_by_itself_is_sampled_whole_again(start, folders):
    """With its own seed, so that a round that takes turns with updates repeats bit for bit."""
    (replica,), requests = start(1), asked(1)
    replica.breaks_off_at = own(folders[1], requests)[0].token_ids[5]
    engine = pool([replica], breaks_off=True)

    async def given_up() -> list[Completion]:
        await engine.update_weights(folders[1])
        playing = asyncio.create_task(engine.generate(requests))
        while replica.sampled < 6:
            await asyncio.sleep(0.001)
        replica.breaks_off_at = None
        replica.abort()
        return await playing

    assert same(asyncio.run(given_up()), own(folders[1], requests))
    assert replica.sampled == 6 + 12 and [answer.seed for answer in replica.served] == [requests[0].seed] * 2


def test_without_breaking_off_a_push_waits_for_what_is_generated(start, folders):
    """So a check that loads a replica again takes nothing from another process's requests either."""
    (replica,), requests = start(1), asked(2)
    replica.token_s = 0.002
    engine = pool([replica])

    async def pushed() -> list[Completion]:
        await engine.update_weights(folders[1])
        playing = asyncio.create_task(engine.generate(requests))
        while replica.sampled < 6:
            await asyncio.sleep(0.001)
        await engine.update_weights(folders[2])
        return await playing

    found = asyncio.run(pushed())
    assert same(found, own(folders[1], requests)) and {v for each in found for v in each.weight_versions} == {1}
