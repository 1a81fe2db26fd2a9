"""One task of a user behind a process with time limits: what hangs or crashes is ended and named (source: ours)."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from model.boundary.errors import MoonflowError
from model.boundary.untrusted_text import well_formed
from model.data.samples.sample import Split
from model.rl.tasks.names import short_name
from model.rl.tasks.task import About, TaskSample
from model.rl.tasks.worker import DONE, READY, serve

START_S = 120.0  # to import the user's package (ours)
GONE_S = 5.0  # for a process that has closed its connection to end (ours)
HANGS = 3  # after which a task is not asked again until `TaskProcess.forgive` (ours): each costs its time limit


class TaskFailure(MoonflowError):
    """The user's code failed: for one prompt or one answer, nothing else."""


class TaskProcess:
    """A task of a user. Its requests are answered one after the other; those of several tasks at the same time.

    Attributes:
        name: ``module:name``.
        about: what the task says of itself.
    """

    def __init__(self, name: str, start_s: float = START_S) -> None:
        """Start the process.

        Raises:
            MoonflowError: there is no such task, or it does not start within ``start_s`` seconds.
        """
        self.name, self._start_s = name, start_s
        self._hangs = 0
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="task")
        try:
            self.about: About = self._start()
        except BaseException:
            self.close()
            raise

    @property
    def short_name(self) -> str:
        """What tables and metrics call it."""
        return short_name(self.name)

    def prompt(self, seed: int, split: Split, index: int) -> TaskSample:
        """The sample of a prompt.

        Raises:
            TaskFailure: the prompt cannot be made.
        """
        return self._thread.submit(self._ask, "prompt", seed, split, index).result()  # type: ignore[no-any-return]

    def verify(self, sample: TaskSample, response: str) -> dict[str, float]:
        """The verdict on an answer: ``score`` in [0, 1], and its parts.

        Raises:
            TaskFailure: there is none.
        """
        return self._thread.submit(self._ask, *_question(sample, response)).result()  # type: ignore[no-any-return]

    def verdict(self, sample: TaskSample, response: str) -> Awaitable[dict[str, float]]:
        """`verify` for a coroutine: other episodes go on meanwhile."""
        import asyncio

        return asyncio.get_running_loop().run_in_executor(self._thread, self._ask, *_question(sample, response))

    def forgive(self) -> None:
        """Ask a task that has hung again."""
        self._hangs = 0

    def close(self) -> None:
        """End the process, also in the middle of a request."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if (process := self._process) is not None:
            self._kill(process)  # a request that is waited for ends now
        self._thread.shutdown()
        self._end()

    def _start(self) -> About:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        with theirs:
            self._process = context.Process(target=serve, args=(theirs, self.name), name=self.name)
            self._process.start()
        kind, said = self._received(f"{self.name} does not start", self._start_s)
        if kind != READY:
            self._end()
            raise MoonflowError(said)
        return said  # type: ignore[no-any-return]

    def _ask(self, method: str, *arguments: Any) -> Any:
        if self._hangs >= HANGS:
            raise TaskFailure(f"{self.name} is not asked again: it has hung {HANGS} times")
        if self._connection is None:
            try:
                self._start()
            except MoonflowError as error:
                raise TaskFailure(str(error)) from None
        assert self._connection is not None
        with suppress(BrokenPipeError):  # it has ended; `_received` says how
            self._connection.send((method, *arguments))
        kind, said = self._received(f"{self.name}: {method} hangs", self.about.timeout_s)
        if kind != DONE:
            raise TaskFailure(well_formed(f"{self.name}: {said}"))
        return said

    def _received(self, hangs: str, seconds: float) -> tuple[str, Any]:
        """The next message of the process. TaskFailure if none comes; the process is ended then."""
        assert self._connection is not None and self._process is not None
        if not self._connection.poll(seconds):
            self._hangs += 1
            self._end()
            raise TaskFailure(f"{hangs}: it was ended after {seconds:g} s")
        try:
            return self._connection.recv()  # type: ignore[no-any-return]
        except (EOFError, ConnectionResetError):
            self._process.join(GONE_S)
            status = self._process.exitcode
            self._end()
            raise TaskFailure(f"{self.name}: its process ended with status {status}") from None

    def _end(self) -> None:
        """End the process and what it has started; the next request starts a new one."""
        if self._process is not None:
            self._kill(self._process)
            self._process.join()
            self._process.close()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None

    @staticmethod
    def _kill(process: BaseProcess) -> None:
        with suppress(ProcessLookupError, ValueError):  # ValueError: its thread has closed it just now
            if process.pid is not None:
                process.kill()  # it may not lead its group yet
                os.killpg(process.pid, signal.SIGKILL)


def _question(sample: TaskSample, response: str) -> tuple[str, int, Split, int, str]:
    return "verify", sample.seed, sample.split, sample.index, response
