"""Saving while training goes on: the training's thread only copies, a second thread writes and publishes (ours).

What belongs to a checkpoint is fixed at the moment of ``save``: tensors are copied to host memory (page-locked where
they come from a GPU, so that the copy runs at the bus's speed), loop state, data position and random generator become
text. One save is in flight at most, so that memory holds one copy and checkpoints appear in order.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.boundary.errors import Unavailable
from model.checkpoint.folder import state_text, write_checkpoint
from model.checkpoint.publication import Checkpoints, Publication
from model.checkpoint.slices import Slice, as_slices
from model.network.config import ModelConfig
from model.network.expert_share import ALL_EXPERTS, ExpertShare

_UPLOAD = timedelta(hours=6)  # how long a rank waits for the slowest rank's files


class HostCopies:
    """Copies of tensors in host memory, in buffers that the next copies use again: fresh pages cost more than copying.

    A call of ``copy`` overwrites the copies of the call before.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A copy of each tensor as it is now, by name; buffers of other names, shapes or types are freed."""
        kept = {name: self._buffer(name, value) for name, value in tensors.items()}
        self._buffers = kept
        on_device = False
        for name, value in tensors.items():
            kept[name].copy_(value.detach(), non_blocking=value.is_cuda)
            on_device = on_device or value.is_cuda
        if on_device:
            torch.cuda.synchronize()
        return dict(kept)

    def _buffer(self, name: str, value: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is not None and buffer.shape == value.shape and buffer.dtype == value.dtype:
            return buffer
        return torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)


def _yield_to_training() -> None:
    """Lower the priority of this thread and those that it starts, so that they use cores that training leaves idle."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


class AsyncSaver:
    """Saves one step's checkpoints in the background. A context manager: leaving it waits for what is in flight.

    Every rank has one and calls the same methods in the same order; the first rank publishes the manifest once all
    others have their files in the store. A save that failed, on whatever rank, raises on every rank at the next
    ``save`` or ``wait``: it is never silent.

    Args:
        checkpoints: where they go.
        work: a local folder to write them to first.
        tokenizer_folder: holds the tokenizer's files, which are part of a checkpoint.
        rank, world: this process's number, and how many processes save together.
        share: which of the experts this process holds; the first ``share.parts`` ranks write weights.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        work: Path,
        tokenizer_folder: Path,
        rank: int = 0,
        world: int = 1,
        share: ExpertShare = ALL_EXPERTS,
    ) -> None:
        self._checkpoints, self._work, self._tokenizer_folder = checkpoints, work, tokenizer_folder
        self._rank, self._world, self._first, self._share = rank, world, rank == 0, share
        # A group of the saving threads' own: collectives of two threads must not share one.
        self._group = dist.new_group(backend="gloo", timeout=_UPLOAD) if world > 1 else None
        self._weights, self._state = HostCopies(), HostCopies()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor | Slice],
        state: Mapping[str, Any],
        *,
        index: int,
        tokens_seen: int,
        complete: bool,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Start to save checkpoint ``index``; returns when everything is copied, or if it is ``complete``, durable.

        Args:
            weights: this rank's part of the model's ``state_dict`` (``model.checkpoint.export.save_part``).
            optimizer: this rank's part of the optimizer's state, by key (``model.checkpoint.slices``).
            state: JSON-able loop state; torch's random state is added.
            files: path in the checkpoint -> content of what else belongs to it; only the first rank's are saved.

        Raises:
            MoonflowError: the save before this one failed; or this one failed and is ``complete``.
        """
        self.wait()
        publication = self._checkpoints.prepare(index=index, tokens_seen=tokens_seen, complete=complete)
        text = state_text(state)
        kept = self._weights.copy(weights) if self._rank < self._share.parts else None
        slices = self._copied(as_slices(optimizer))
        folder = self._work / f"checkpoint-{index}"

        def work() -> None:
            try:
                _yield_to_training()
                self._write(folder, config, kept, slices, text, publication, files or {})
            except BaseException as error:
                self._error = error
            finally:
                shutil.rmtree(folder, ignore_errors=True)

        # The caller's context: what is set per task there (a tracking run, say) holds in the thread as well.
        self._thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name=f"checkpoint-{index}")
        self._thread.start()
        if complete:
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is in flight; raises the error of the last save if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> AsyncSaver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Also when training failed: what is in flight is worth keeping, and a manifest is never half there.
        try:
            self.wait()
        except Exception as failed:
            if error is None:
                raise
            error.add_note(f"the checkpoint in flight failed, too: {failed}")

    def _copied(self, slices: Iterable[Slice]) -> list[Slice]:
        by_name = {f"{one.key}@{one.start}": one for one in slices}
        copies = self._state.copy({name: one.values_n for name, one in by_name.items()})
        return [Slice(one.key, one.shape, one.start, copies[name]) for name, one in by_name.items()]

    def _write(
        self,
        folder: Path,
        config: ModelConfig,
        weights: Mapping[str, Tensor] | None,
        slices: list[Slice],
        text: str,
        publication: Publication,
        files: Mapping[str, bytes],
    ) -> None:
        rank, world, share = self._rank, self._world, self._share
        write_checkpoint(folder, config, weights, self._tokenizer_folder, slices, text, rank, world, share)
        for path, content in files.items() if self._first else ():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        if self._world == 1:
            publication.publish(folder)
            return
        # In turns: the publishing rank clears a damaged checkpoint before the others upload their files.
        self._each(publication.clear if self._first else None)
        described = self._each(None if self._first else lambda: publication.add(folder))
        self._each((lambda: publication.publish(folder, described[1:])) if self._first else None)

    def _each(self, action: Callable[[], Any] | None) -> list[Any]:
        """What the action returned on each rank; Unavailable on all ranks if it failed on one."""
        result: Any = None
        problem = ""
        try:
            result = action() if action is not None else None
        except Exception as error:
            problem = f"rank {self._rank}: {error}"
        results: list[Any] = [None] * self._world
        dist.all_gather_object(results, (result, problem), group=self._group)
        for _, told in results:
            if told:
                raise Unavailable(f"a checkpoint could not be saved, {told}")
        return [value for value, _ in results]
