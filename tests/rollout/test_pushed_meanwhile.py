"""Replicas are given weights while requests are under way: nothing is lost, nothing mixed up."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from model.checkpoint.load import load_model
from model.rollout.protocol import Completion
from tests.rollout.replicas import PAD, asked, own, pool, pushed_meanwhile, same
from tests.uncached import full_logprobs


def test_new_weights_break_generations_off_and_the_rest_is_sampled_from_them(start, folders):
    """The reference is the whole forward of either model, without a cache. Nobody is taken for dead."""
    replicas, requests = start(2), asked(6, tokens=40)
    for replica in replicas:
        replica.token_s = 0.002
    engine = pool(replicas, breaks_off=True)

    async def published() -> tuple[list[Completion], list[Completion]]:
        found = await pushed_meanwhile(engine, folders, requests, lambda: min(r.sampled for r in replicas) >= 15)
        return found, await engine.generate(requests[:2])

    (found, late), models = asyncio.run(published()), [load_model(folder) for folder in folders[1:]]
    assert same(late, own(folders[2], requests[:2])) and set(late[0].weight_versions) == {2}
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

    (found,) = asyncio.run(pushed_meanwhile(engine, folders, [request], lambda: replica.sampled > tokens.index(stop)))
    assert same([found], own(folders[1], [request])) and found.finish_reason == "stop"


def test_a_request_that_waits_at_a_replica_when_weights_come_loses_nothing(start, folders):
    """It is aborted before anything is sampled, and so has no tokens, log-probs or weights."""
    replicas, requests = start(1), asked(3)
    replicas[0].slow_s = 60.0
    engine = pool(replicas, breaks_off=True)

    def waiting() -> bool:
        if replicas[0].most == 3:
            replicas[0].slow_s = 0.0
        return replicas[0].most == 3

    found = asyncio.run(pushed_meanwhile(engine, folders, requests, waiting))
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

    found = asyncio.run(pushed_meanwhile(engine, folders, requests, lambda: replica.sampled >= 6))
    assert same(found, own(folders[1], requests)) and {v for each in found for v in each.weight_versions} == {1}
