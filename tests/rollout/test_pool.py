"""A pool lets as many requests in as it may, the first first, and says how long each has waited."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from model.boundary.errors import MoonflowError
from model.rollout.pool import Pool
from model.rollout.protocol import Completion, Request


class Held:
    """Completes a request when it is told to; it says that each waited a second in its queue."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ends: dict[int, asyncio.Future[None]] = {}

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        (request,) = requests
        self.begun.append(request.seed)
        self.ends[request.seed] = asyncio.get_running_loop().create_future()
        await self.ends[request.seed]
        return [Completion([request.seed], [0.0], "stop", waited_s=1.0)]

    async def update_weights(self, checkpoint: Path) -> None:
        raise NotImplementedError


async def settled() -> None:
    """All that can go on has gone on."""
    for _ in range(20):
        await asyncio.sleep(0)


def asked(pool: Pool, engine: Held, *seeds: int) -> asyncio.Task[list[Completion]]:
    return asyncio.create_task(pool.over(engine).generate([Request([1], seed=seed) for seed in seeds]))


def test_the_first_come_first_and_the_size_may_change_meanwhile() -> None:
    async def play() -> None:
        pool, engine = Pool(2), Held()
        many = asked(pool, engine, 1, 2, 3, 4, 5)
        await settled()
        assert engine.begun == [1, 2]
        engine.ends[2].set_result(None)
        await settled()
        assert engine.begun == [1, 2, 3]
        pool.capacity = 1  # what is in flight goes on, and nothing else begins until one place is free
        engine.ends[3].set_result(None)
        await settled()
        assert engine.begun == [1, 2, 3]
        pool.capacity = 3
        await settled()
        assert engine.begun == [1, 2, 3, 4, 5]
        for seed in (1, 4, 5):
            engine.ends[seed].set_result(None)
        assert [each.token_ids for each in await many] == [[1], [2], [3], [4], [5]], "in the order of the requests"
        waits = pool.waits()
        assert len(waits) == 5 and min(waits) >= 1.0 and max(waits) > 1.0 and pool.waits() == []

    asyncio.run(play())


def test_who_gives_up_or_breaks_leaves_the_place_to_the_next() -> None:
    async def play() -> None:
        pool, engine = Pool(1), Held()
        first, second, third, last = (asked(pool, engine, seed) for seed in range(4))
        await settled()
        second.cancel()
        first.cancel()  # the third one's turn comes, and it is cancelled before it has noticed
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        third.cancel()
        await settled()
        engine.ends[3].set_exception(MoonflowError("broken"))
        with pytest.raises(MoonflowError, match="broken"):
            await last
        again = asked(pool, engine, 7)
        await settled()
        engine.ends[7].set_result(None)
        await again
        assert len(pool.waits()) == 1, "of what was completed"

    asyncio.run(play())
