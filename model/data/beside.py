"""Batches made in a process beside the trainer (source: ours).

``python -m model.data.beside`` reads what to make from its standard input and writes batches to its standard output, a
few ahead of what has been read. Both ends are pipes to one parent, who wrote this program's input: nothing else may. It
ends with its parent, however that ends, because the pipe then closes.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from model.data.packing import Batch
from model.data.planner import StreamState
from model.data.stream import StreamRecipe
from model.errors import MoonflowError

AHEAD = 4  # batches that wait to be read
_SIZE = struct.Struct("<Q")


def batches_beside(
    recipe: StreamRecipe, state: StreamState | None, count: int, rank: int, ranks: int
) -> Iterator[tuple[Batch, StreamState, int]]:
    """``count`` batches with the state after each, and how many samples could not be read so far.

    Raises:
        MoonflowError: as making them here would; or the process was killed.
    """
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-m", "model.data.beside"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            _write(process.stdin, (recipe, state, count, rank, ranks))
        for _ in range(count):
            try:
                kind, *content = _read(process.stdout)
            except EOFError:
                status = process.wait()
                raise MoonflowError(
                    f"the process that makes batches ended with status {status} before its work was done: "
                    "its machine may have run out of memory; run again to go on from the last checkpoint"
                ) from None
            if kind == "bad input":
                raise MoonflowError(content[0])
            if kind == "bug":
                raise RuntimeError(f"making a batch failed in the process beside this one:\n{content[0]}")
            fields, state, broken = content
            yield _as_batch(fields), state, broken
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def main() -> None:
    # What others print must not come between the batches.
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group: the parent decides, and its pipe tells
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    recipe, state, count, rank, ranks = _read(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    ready: queue.Queue[tuple[Any, ...] | None] = queue.Queue(AHEAD)
    sender = threading.Thread(target=_send, args=(output, ready))
    sender.start()
    try:
        stream = recipe(state)
        for batch, after in stream.batches(count, rank, ranks, beside=False):
            ready.put(("batch", _as_fields(batch), after, stream.broken))
    except MoonflowError as error:
        ready.put(("bad input", str(error)))
    except Exception:  # whatever it is: the parent raises it, with this traceback
        import traceback

        ready.put(("bug", traceback.format_exc()))
    ready.put(None)
    sender.join()
    os._exit(0)


def _end_with_parent() -> None:
    sys.stdin.buffer.read()  # returns when the other end is closed: by the parent, or for it when it is killed
    os._exit(1)


def _send(output: IO[bytes], ready: queue.Queue[tuple[Any, ...] | None]) -> None:
    while (item := ready.get()) is not None:
        try:
            _write(output, item)
        except BrokenPipeError:
            os._exit(1)


def _as_fields(batch: Batch) -> dict[str, Any]:
    return {name: value.numpy() if isinstance(value, Tensor) else value for name, value in vars(batch).items()}


def _as_batch(fields: dict[str, Any]) -> Batch:
    values: dict[str, Any] = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in fields.items()
    }
    return Batch(**values)


def _write(pipe: IO[bytes], content: object) -> None:
    """Arrays travel behind the pickle as they are."""
    arrays: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(content, protocol=5, buffer_callback=arrays.append)
    parts = [memoryview(pickled), *(array.raw() for array in arrays)]
    pipe.write(struct.pack(f"<{len(parts) + 1}Q", len(parts), *(len(part) for part in parts)))
    for part in parts:
        while part:
            part = part[pipe.write(part) :]
    pipe.flush()


def _read(pipe: IO[bytes]) -> Any:
    """What ``_write`` wrote. EOFError if the pipe ends before."""
    (count,) = _SIZE.unpack(_exactly(pipe, _SIZE.size))
    parts = [_exactly(pipe, size) for size in struct.unpack(f"<{count}Q", _exactly(pipe, count * _SIZE.size))]
    return pickle.loads(parts[0], buffers=parts[1:])


def _exactly(pipe: IO[bytes], size: int) -> bytearray:
    data = bytearray(size)
    if pipe.readinto(data) != size:  # type: ignore[attr-defined]
        raise EOFError
    return data


if __name__ == "__main__":
    main()
