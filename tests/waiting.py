"""What happens elsewhere, in another thread or process, and is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def happens(true: Callable[[], object], seconds: float = 30.0, pause: float = 0.02) -> bool:
    """Whether it becomes true in so many seconds; asks after each ``pause``, in seconds too."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def in_background(count: int, work: Callable[[], T]) -> list[Future[T]]:
    """``work``, begun in so many threads."""
    threads = ThreadPoolExecutor(count)
    futures = [threads.submit(work) for _ in range(count)]
    threads.shutdown(wait=False)
    return futures
