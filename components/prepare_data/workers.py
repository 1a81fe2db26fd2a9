"""Worker processes that end with this one, and whose failure, whatever it was, arrives as a message."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import ParamSpec, TypeVar

from model.boundary.errors import MoonflowError
from model.boundary.parent_process import end_with_parent

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """Runs functions in worker processes."""

    def __init__(self, executor: ProcessPoolExecutor) -> None:
        self._executor = executor

    def submit(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> Future[T]:
        """Start ``work(*arguments, **named)`` in a worker.

        The future raises:
            MoonflowError: as ``work`` did; the worker ran out of memory.
            RuntimeError: ``work`` failed in another way; holds the worker's traceback.
        """
        return self._executor.submit(partial(_told, work, *arguments, **named))


@contextmanager
def workers(processes: int) -> Iterator[Workers]:
    """Workers that are spawned, because this process has threads; each ends with this process, even after a SIGKILL.

    An error inside the context drops the work that has not begun.

    Raises:
        MoonflowError: a worker was killed.
    """
    executor = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=end_with_parent)
    try:
        yield Workers(executor)
    except BrokenProcessPool:
        raise MoonflowError(
            "a worker process of prepare_data was killed, probably because memory ran out: give it more memory or set "
            "fewer processes"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _told(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Runs in the worker. Only text goes back to the parent: a library's exception may not survive being pickled."""
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
