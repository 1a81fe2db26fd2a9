"""Worker processes that end with this one, and whose end, whatever it was, is told in words."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import ParamSpec, TypeVar

from model.errors import MoonflowError

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """Runs functions in worker processes."""

    def __init__(self, executor: ProcessPoolExecutor) -> None:
        self._executor = executor

    def submit(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> Future[T]:
        """
        The future raises:
            MoonflowError: as ``work`` did; the worker ran out of memory.
            RuntimeError: ``work`` failed in another way; holds the worker's traceback.
        """
        return self._executor.submit(partial(_told, work, *arguments, **named))


@contextmanager
def workers(processes: int) -> Iterator[Workers]:
    """Spawned, since this process has threads; each ends when this process does, even by SIGKILL.

    An error inside drops the work that has not begun.

    Raises:
        MoonflowError: a worker was killed.
    """
    executor = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_end_with_parent)
    try:
        yield Workers(executor)
    except BrokenProcessPool:
        raise MoonflowError(
            "a worker process of prepare_data was killed, likely for want of memory: give it more memory or set "
            "fewer processes"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _told(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Only text crosses to the parent: an exception of a library may not survive being pickled."""
    try:
        return work(*arguments, **named)
    except MoonflowError as error:
        raise MoonflowError(str(error)) from None
    except MemoryError:
        raise MoonflowError(
            "a worker process of prepare_data ran out of memory: give it more memory or set fewer processes"
        ) from None
    except BaseException:
        raise RuntimeError(f"a worker process of prepare_data failed:\n{traceback.format_exc()}") from None


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
