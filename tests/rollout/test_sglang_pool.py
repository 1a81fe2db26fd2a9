"""Several replicas as one engine: servers that really generate, that die, hang, fail and come back."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from model.boundary.errors import MoonflowError, Transient
from model.codec.image import ImageConfig, encode_image
from model.rollout.protocol import Completion, Request
from model.rollout.sglang_pool import SGLangPool
from tests.http_server import nobody
from tests.rollout.replicas import PAD, SOON, asked, own, pool, same


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
