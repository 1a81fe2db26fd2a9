"""Batches made ahead of the trainer, in a worker process of torch's ``DataLoader``.

A thread would slow the trainer down: it would hold Python's lock between the many small operations of a training step.
"""

from __future__ import annotations

import atexit
import io
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from model.boundary.errors import MoonflowError
from model.boundary.parent_process import end_with_parent
from model.data.batches.maker import BatchMaker, Made, MixtureRecipe
from model.data.order.planner import StreamState

AHEAD = 4  # batches that may wait for the trainer
T = TypeVar("T")


def prefetched(
    recipe: MixtureRecipe, state: StreamState, count: int, rank: int, ranks: int
) -> Generator[Made, None, None]:
    """``count`` batches, each with the state after it, which does not depend on how far the worker is ahead.

    The worker is spawned, not forked, because the trainer has threads (OpenMP's among them) and may hold a GPU. Batches
    come through shared memory: /dev/shm must have room for one more than ``AHEAD``.

    Raises:
        MoonflowError: a batch cannot be made (as ``BatchMaker.next``), or the worker was killed.
        RuntimeError: the worker failed in another way; the message has its traceback.
    """
    loader = DataLoader(
        _Batches(recipe, state, count, rank, ranks),
        batch_size=None,  # every item is a whole batch
        num_workers=1,
        prefetch_factor=AHEAD,
        multiprocessing_context="spawn",
        worker_init_fn=_begin,
        collate_fn=_unchanged,
        generator=torch.Generator(),  # it draws a seed, which must not come from the trainer's random state
    )
    items = _started(loader)
    try:
        for _ in range(count):
            try:
                item = pickle.loads(next(items).numpy().data)
            except (RuntimeError, OSError, EOFError) as error:  # of DataLoader; errors of the worker come as items
                raise MoonflowError(
                    f"the process that makes batches ended before its work was done ({error}): its machine may have "
                    "run out of memory; run again to continue from the last checkpoint"
                ) from None
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        del items  # ends the worker


class _Batches(IterableDataset[Tensor]):
    """What the worker sends: pickled batches, or last the error that ended them."""

    def __init__(self, recipe: MixtureRecipe, state: StreamState, count: int, rank: int, ranks: int) -> None:
        # In shared memory. What is passed through a pipe must fit into it: the trainer would wait forever for a worker
        # that died before it read the rest.
        self._work = _pickled((recipe, state))
        self._count, self._rank, self._ranks = count, rank, ranks

    def __iter__(self) -> Iterator[Tensor]:
        return map(_pickled, self._made())

    def _made(self) -> Iterator[Made | Exception]:
        try:
            maker = BatchMaker(*pickle.loads(self._work.numpy().data))
            for _ in range(self._count):
                yield maker.next(self._rank, self._ranks)
        except MoonflowError as error:
            yield error
        except Exception:  # as text: a library's exception may not survive being pickled
            yield RuntimeError(f"making a batch failed in the worker process:\n{traceback.format_exc()}")


def _pickled(item: object) -> Tensor:
    """uint8 [bytes]: a single tensor to send, because each costs the trainer a connection to the worker."""
    content = io.BytesIO()
    _Pickler(content).dump(item)
    return torch.frombuffer(content.getbuffer(), dtype=torch.uint8)


class _Pickler(pickle.Pickler):
    """Pickles tensors as NumPy arrays, which is several times as fast as torch's own way."""

    def reducer_override(self, value: Any) -> Any:
        return (_as_tensor, (value.numpy(),)) if isinstance(value, Tensor) else NotImplemented


def _as_tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array)


def _started(loader: DataLoader[Tensor]) -> Iterator[Tensor]:
    """The loader's iterator, with the worker started.

    DataLoader sets a handler of SIGCHLD that raises in the middle of whatever the trainer does when a worker dies. The
    earlier handler is restored here: a dead worker is noticed when the next batch is requested.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    items = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)
    return items


def _begin(worker: int) -> None:
    os.setpgrp()  # Ctrl-C and SIGTERM to the whole group are for the trainer, which still finishes its step
    end_with_parent()
    atexit.register(os._exit, 0)  # the worker holds nothing to tear down, and to unload torch takes half a second


def _unchanged(item: T) -> T:
    return item
