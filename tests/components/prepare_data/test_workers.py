from __future__ import annotations

import os
import signal

import pytest

from components.prepare_data.workers import workers
from model.boundary.errors import MoonflowError


class Unpicklable(Exception):
    """Comes back from a pickle only with two arguments, of which the pickle has one."""

    def __init__(self, name: str, place: int) -> None:
        super().__init__(f"{name} at {place}")
        self.held = lambda: place


def fail(kind: str) -> int:
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "memory":
        raise MemoryError
    if kind == "bad input":
        raise MoonflowError("a.png: fix it")
    if kind == "library":
        raise Unpicklable("a box", 7)
    return 5


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("killed", (MoonflowError, "^a worker process of prepare_data was killed.*fewer processes$")),
        ("memory", (MoonflowError, "^a worker process of prepare_data ran out of memory.*fewer processes$")),
        ("bad input", (MoonflowError, r"^a\.png: fix it$")),
        ("library", (RuntimeError, r"(?s)test_workers\.py.*in fail.*Unpicklable: a box at 7")),
    ],
)
def test_however_a_worker_fails_the_parent_hears_it_in_words(kind: str, told: tuple[type[Exception], str]) -> None:
    with pytest.raises(told[0], match=told[1]), workers(1) as pool:
        pool.submit(fail, kind).result()


def test_a_worker_gives_what_the_work_gives() -> None:
    with workers(1) as pool:
        assert pool.submit(fail, "").result() == 5
