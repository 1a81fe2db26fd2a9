"""What a request needs before the engine has it: memory for its bytes, and a thread to read them in."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from components.serve.errors import overloaded
from components.serve.limits import MAX_HELD_BYTES, MAX_PREPARING, PREPARING_THREADS

Result = TypeVar("Result")


class Memory:
    """Bytes that requests hold, from their first to their last. Any thread may ask for more."""

    def __init__(self) -> None:
        self._held = 0
        self._lock = threading.Lock()

    @contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """A function that takes bytes, or raises ApiError (503) if too few are left; all are given back at the end."""
        mine, over = 0, False

        def hold(size: int) -> None:
            nonlocal mine
            with self._lock:
                if over:  # in a thread that still works for a client who has left
                    raise asyncio.CancelledError
                if self._held + size > MAX_HELD_BYTES:
                    raise overloaded(f"the requests under way hold {self._held:,} of {MAX_HELD_BYTES:,} bytes")
                self._held += size
                mine += size

        try:
            yield hold
        finally:
            with self._lock:
                over = True
                self._held -= mine


class Threads:
    """A few threads, so that preparing requests leaves processor time to the event loop and the engine."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(PREPARING_THREADS, "prepare")
        self._under_way: set[Future[Any]] = set()

    async def run(self, work: Callable[[], Result]) -> Result:
        """Do the work in a thread. If this call is cancelled before the work has begun, it never begins.

        Raises:
            ApiError: 503, too many requests wait already. Otherwise what the work raises.
        """
        if len(self._under_way) >= MAX_PREPARING + PREPARING_THREADS:
            raise overloaded(f"{MAX_PREPARING} requests are waiting to be read already")
        future = self._pool.submit(work)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
