"""Capacity moves to the pool whose requests wait longer, by steps, and none is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from model.parallel.ranks import Ranks
from model.rollout.protocol import Completion, Request
from model.swarm.pools import STEP, SwarmPools, moved


@pytest.mark.parametrize(
    ("capacity", "other", "wait", "other_wait", "expected"),
    [
        (10, 20, 5.0, 0.0, 3),  # a tenth of 30
        (10, 20, 0.0, 5.0, -3),
        (10, 20, 4.0, 4.0, 0),
        (10, 20, 3.0, 1.0, 1),  # half of the step, and a little less
        (10, 20, 0.0005, 0.0, 0),  # not worth a place
        (10, 20, 0.0, 0.0, 0),
        (2, 1, 9.0, 0.0, 0),  # the other one keeps its last place
        (1, 2, 0.0, 9.0, 0),
        (2, 2, 9.0, 0.0, 1),  # at least 1, however small the total is
    ],
)
def test_the_pool_that_waits_longer_gets_a_part_of_the_step(
    capacity: int, other: int, wait: float, other_wait: float, expected: int
) -> None:
    assert moved(capacity, other, wait, other_wait) == expected
    assert moved(other, capacity, other_wait, wait) == -expected, "what one gets the other gives"


def test_sizes_come_to_rest_where_both_wait_alike() -> None:
    """In a model of queues: a pool's wait is what it is asked for above its size, a second each."""
    first, second = 10, 20
    steps = []
    for _ in range(40):
        more = moved(first, second, max(0, 24 - first), max(0, 12 - second))
        assert abs(more) <= STEP * 30
        first, second = first + more, second - more
        steps.append(first)
    assert first + second == 30 and steps == sorted(steps) and first >= 18, "no swing, and the sub-agents have enough"


class Instant:
    """Completes at once what has waited so many seconds."""

    def __init__(self, waited_s: float) -> None:
        self.waited_s = waited_s

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [Completion([1], [0.0], "stop", waited_s=self.waited_s) for _ in requests]

    async def update_weights(self, checkpoint: Path) -> None:
        raise NotImplementedError


def ask(pools: SwarmPools, main: int, sub: int) -> None:
    async def play() -> None:
        await pools.orchestrator.over(Instant(0.0)).generate([Request([1])] * main)
        for waited in (1.0, 3.0):  # two engines of one pool are measured together
            await pools.sub_agents.over(Instant(waited)).generate([Request([1])] * sub)

    asyncio.run(play())


def test_a_round_is_told_what_it_waited_and_the_next_one_has_other_sizes() -> None:
    pools = SwarmPools(30, Ranks())
    ask(pools, 3, 2)
    told = pools()
    assert told["queue_s/sub_agents"] == pytest.approx(2.0, abs=0.05) and told["queue_s/orchestrator"] < 0.05
    assert (told["pool_size/orchestrator"], told["pool_size/sub_agents"]) == (10, 20)
    assert (pools.orchestrator.capacity, pools.sub_agents.capacity) == (7, 23)
    assert pools() == {"pool_size/orchestrator": 7, "pool_size/sub_agents": 23}, "nobody asked, so nothing moves"
    free = SwarmPools(0, Ranks())
    ask(free, 1, 1)
    assert set(free()) == {"queue_s/orchestrator", "queue_s/sub_agents"} and free.orchestrator.capacity is None
