"""The embedded engine in its own process: its decode steps do not hold the interpreter lock of the event loop."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple, cast

from components.serve.engine_messages import Begin, Cancel, FinishReason, LoadResult, MessageReader, Step, encode
from model.boundary.errors import MoonflowError
from model.rollout.protocol import Request

END_SECONDS = 5.0  # the process notices at once that it is alone; longer, and it is killed
logger = logging.getLogger("moonflow.serve")


class EngineError(Exception):
    """A request failed in the engine's process, or with it."""


class Token(NamedTuple):
    """A sampled token and its log-prob in nats."""

    id: int
    logprob: float


class Generation:
    """One request under way. Use it in the event loop that began it.

    Attributes:
        tokens: what has been sampled so far.
        first_token_at: ``time.monotonic`` of the first token's arrival, or None.
    """

    def __init__(self, engine: EngineProcess, number: int) -> None:
        self._engine = engine
        self._number = number
        self._news = asyncio.Event()
        self._ended = asyncio.Event()
        self._outcome: FinishReason | EngineError | None = None
        self.tokens: list[Token] = []
        self.first_token_at: float | None = None

    async def batches(self) -> AsyncIterator[list[Token]]:
        """New tokens: at each iteration, all that have come since the last.

        Raises:
            EngineError: what the engine failed with.
        """
        seen = 0
        while True:
            if seen < len(self.tokens):
                new = self.tokens[seen:]
                seen = len(self.tokens)
                yield new
            elif self._outcome is not None:
                await self.wait()
                return
            else:
                self._news.clear()
                await self._news.wait()

    async def wait(self) -> FinishReason:
        """Wait until it has ended; returns why. Raises as ``batches``."""
        await self._ended.wait()
        assert self._outcome is not None
        if isinstance(self._outcome, EngineError):
            raise self._outcome
        return self._outcome

    def cancel(self) -> None:
        """Free its row of the batch; no more tokens come. Without effect once it has ended."""
        if self._outcome is None:
            self._engine.cancel(self._number)

    def receive(self, token: Token) -> None:
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
        self.tokens.append(token)
        self._news.set()

    def end(self, outcome: FinishReason | EngineError) -> None:
        self._outcome = outcome
        self._news.set()
        self._ended.set()


class EngineProcess(asyncio.Protocol):
    """Passes requests to the process, and its tokens to the event loop, once per decode step.

    Make it with ``start``. When the process that made it ends, however it ends, their socket closes and the engine's
    process ends too.

    Attributes:
        failure: why the process ended by itself, in one line; "" while all is well.
    """

    def __init__(self, process: subprocess.Popen[bytes], on_tokens: Callable[[int], None]) -> None:
        self._process = process
        self._on_tokens = on_tokens
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._decoder = MessageReader()
        self._numbers = itertools.count()
        self._live: dict[int, Generation] = {}
        self._running = 0
        self._closing = False
        self.failure = ""

    @classmethod
    async def start(cls, checkpoint: Path, on_tokens: Callable[[int], None]) -> EngineProcess:
        """Load a checkpoint folder in a process of its own.

        Args:
            on_tokens: told how many tokens have come, once per step.

        Raises:
            MoonflowError: the folder is not a whole checkpoint.
            EngineError: the process ended while it loaded.
        """
        ours, theirs = socket.socketpair()
        root = str(Path(__file__).parents[2])  # where `components` is imported from
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "components.serve.engine_worker", str(checkpoint), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C in a terminal is for the server, which has answers to finish first
            )
        engine = cls(process, on_tokens)
        try:
            await asyncio.get_running_loop().create_connection(lambda: engine, sock=ours)
            await engine._loaded
        except BaseException:
            engine._closing = True
            process.kill()
            process.wait()
            raise
        return engine

    @property
    def waiting(self) -> int:
        """Requests that wait for a row of the batch."""
        return len(self._live) - self._running

    @property
    def running(self) -> int:
        """Requests that have a row: their first token has come, and their end has not."""
        return self._running

    def begin(self, requests: list[Request]) -> list[Generation]:
        """Put requests into the queue, at once, so that equal prompts are read once.

        An impossible request fails when its generation is awaited (EngineError).
        """
        numbers = [next(self._numbers) for _ in requests]
        generations = [Generation(self, number) for number in numbers]
        if self.failure:
            for generation in generations:
                generation.end(EngineError(self.failure))
        else:
            self._live.update(zip(numbers, generations, strict=True))
            self._transport.write(encode(Begin(list(zip(numbers, requests, strict=True)))))
        return generations

    def cancel(self, number: int) -> None:
        self._transport.write(encode(Cancel(number)))

    async def close(self) -> None:
        """End the process; what is still under way is dropped."""
        self._closing = True
        self._transport.abort()
        await asyncio.to_thread(self._wait)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        for message in self._decoder.feed(data):
            if isinstance(message, Step):
                self._deliver(message)
            elif isinstance(message, LoadResult) and not self._loaded.done():
                if message.failure:
                    self._loaded.set_exception(MoonflowError(message.failure))
                else:
                    self._loaded.set_result(None)

    def connection_lost(self, _: Exception | None) -> None:
        self._burial = asyncio.get_running_loop().create_task(self._bury())

    def _deliver(self, step: Step) -> None:
        for number, token, logprob in step.tokens:
            generation = self._live[number]
            self._running += not generation.tokens
            generation.receive(Token(token, logprob))
        for number, reason in step.ended.items():
            self._end(number, reason)
        for number, why in step.failed.items():
            self._end(number, EngineError(why))
        if step.tokens:
            self._on_tokens(len(step.tokens))

    def _end(self, number: int, outcome: FinishReason | EngineError) -> None:
        generation = self._live.pop(number)
        self._running -= bool(generation.tokens)
        generation.end(outcome)

    async def _bury(self) -> None:
        status = await asyncio.to_thread(self._wait)
        why = f"the engine process ended with status {status}; start the server again"
        self.failure = why
        if not self._closing:
            logger.error(why)
        if not self._loaded.done():
            self._loaded.set_exception(EngineError(why))
        for number in list(self._live):
            self._end(number, EngineError(why))

    def _wait(self) -> int:
        """Its exit status; minus the signal's number if one ended it."""
        try:
            return self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
