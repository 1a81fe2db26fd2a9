"""Memory that requests share, and threads that read them."""

from __future__ import annotations

import asyncio
import threading

import pytest

from components.serve import preparation
from components.serve.errors import ApiError
from components.serve.preparation import Memory, Threads


def test_memory_is_free_again_however_a_request_ends(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preparation, "MAX_HELD_BYTES", 100)
    memory = Memory()
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), memory.holding() as hold:
            hold(60)
            hold(40)
            with pytest.raises(ApiError, match="hold 100 of 100 bytes"):
                hold(1)
            raise ZeroDivisionError


def test_a_thread_that_works_for_nobody_gets_no_more_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preparation, "MAX_HELD_BYTES", 100)
    memory = Memory()
    with memory.holding() as late:
        pass
    with pytest.raises(asyncio.CancelledError):
        late(100)
    with memory.holding() as hold:
        hold(100)


def test_who_leaves_the_queue_leaves_its_place(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preparation, "MAX_PREPARING", 1)
    monkeypatch.setattr(preparation, "PREPARING_THREADS", 1)
    go_on = threading.Event()
    begun: list[str] = []

    async def scenario() -> None:
        threads = Threads()
        first = asyncio.create_task(threads.run(lambda: go_on.wait(30)))
        second = asyncio.create_task(threads.run(lambda: begun.append("second")))
        await asyncio.sleep(0.05)
        with pytest.raises(ApiError, match="1 requests are waiting"):
            await threads.run(lambda: begun.append("third"))
        second.cancel()
        await asyncio.sleep(0.05)
        fourth = asyncio.create_task(threads.run(lambda: begun.append("fourth")))
        await asyncio.sleep(0.05)
        go_on.set()
        assert await first
        await fourth
        threads.close()

    asyncio.run(scenario())
    assert begun == ["fourth"]
