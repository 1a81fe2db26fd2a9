"""The completions of one role: how many are in flight at once, and how long the others wait for it (source: ours).

A request waits here for its turn, and in its engine for a free row or replica. Which requests are in flight together
does not change what is sampled where the engine's arithmetic does not depend on its batch (`model.rollout.embedded`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.boundary.at_once import all_of
from model.rollout.protocol import Completion, Request, RolloutEngine


class Pool:
    """The engines that speak for one role share its capacity, and are measured together.

    Args:
        capacity: most completions in flight at once; None: as many as are asked for.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self._capacity = capacity
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._waited: list[float] = []

    def over(self, engine: RolloutEngine) -> RolloutEngine:
        """``engine``, whose requests take their turn in this pool."""
        return _Limited(self, engine)

    @property
    def capacity(self) -> int | None:
        """Most completions in flight at once. What is in flight goes on when it becomes less."""
        return self._capacity

    @capacity.setter
    def capacity(self, capacity: int) -> None:
        self._capacity = capacity
        self._let_in()

    def waits(self) -> list[float]:
        """Seconds that each request waited that was completed since the last call."""
        found, self._waited = self._waited, []
        return found

    async def complete(self, engine: RolloutEngine, request: Request) -> Completion:
        """One completion, when it is its turn: first come, first served. Raises what ``engine`` raises."""
        asked = time.perf_counter()
        await self._turn()
        begun = time.perf_counter()
        try:
            (completion,) = await engine.generate([request])
        finally:
            self._running -= 1
            self._let_in()
        self._waited.append(begun - asked + completion.waited_s)
        return completion

    async def _turn(self) -> None:
        if self._has_room():
            self._running += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was this request's turn: the next one takes it
                self._running -= 1
                self._let_in()
            raise

    def _let_in(self) -> None:
        while self._waiting and self._has_room():
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._running += 1

    def _has_room(self) -> bool:
        return self._capacity is None or self._running < self._capacity


@dataclass(frozen=True)
class _Limited:
    """A ``RolloutEngine`` whose requests wait for their turn in ``pool``."""

    pool: Pool
    engine: RolloutEngine

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return await all_of(self.pool.complete(self.engine, request) for request in requests)

    async def update_weights(self, checkpoint: Path) -> None:
        await self.engine.update_weights(checkpoint)
