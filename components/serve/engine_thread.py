"""The embedded engine on a thread of its own, so that a decode step never holds up the server's event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from model.errors import MoonflowError
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Completion, Request


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

    def __init__(self, engine: EngineThread) -> None:
        self._engine = engine
        self._news = asyncio.Event()
        self._ended = asyncio.Event()
        self._outcome: Completion | BaseException | None = None
        self.tokens: list[Token] = []
        self.first_token_at: float | None = None
        self.future: asyncio.Future[Completion] | None = None  # belongs to the engine's thread

    async def batches(self) -> AsyncIterator[list[Token]]:
        """New tokens, as many as there are whenever the consumer comes back.

        Raises:
            Exception: what the engine failed with.
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

    async def wait(self) -> Completion:
        """The whole completion; raises as ``batches``."""
        await self._ended.wait()
        if isinstance(self._outcome, Completion):
            return self._outcome
        assert self._outcome is not None
        raise self._outcome

    def cancel(self) -> None:
        """Free its row of the batch; no more tokens come. Without effect once it has ended."""
        if self._outcome is None:
            self._engine.cancel(self)

    def receive(self, token: Token) -> None:
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
        self.tokens.append(token)
        self._news.set()

    def end(self, outcome: Completion | BaseException) -> None:
        self._outcome = outcome
        self._news.set()
        self._ended.set()


class EngineThread:
    """Runs an embedded engine and hands its tokens to the event loop that made this object, once per decode step."""

    def __init__(self, engine: EmbeddedEngine, on_tokens: Callable[[int], None]) -> None:
        """
        Args:
            on_tokens: told in the event loop how many tokens have come, once per step.
        """
        self._engine = engine
        self._on_tokens = on_tokens
        self._server_loop = asyncio.get_running_loop()
        self._loop = asyncio.new_event_loop()
        self._news: list[tuple[Generation, Token]] = []  # of this step; only the engine's thread touches it
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that wait for a row of the batch."""
        return self._engine.waiting

    @property
    def running(self) -> int:
        """Rows of the batch that are taken."""
        return self._engine.running

    def begin(self, requests: list[Request]) -> list[Generation]:
        """Put requests into the queue, at once, so that equal prompts are read once.

        An impossible request fails when its generation is awaited (MoonflowError).
        """
        generations = [Generation(self) for _ in requests]
        self._loop.call_soon_threadsafe(self._begin, generations, requests)
        return generations

    def cancel(self, generation: Generation) -> None:
        self._loop.call_soon_threadsafe(self._cancel, generation)

    def close(self) -> None:
        """End the thread; what is still under way is dropped."""
        self._loop.call_soon_threadsafe(self._stop)
        self._thread.join()
        self._loop.close()

    # Below, all runs on the engine's thread, but _deliver.

    def _begin(self, generations: list[Generation], requests: list[Request]) -> None:
        for generation, request in zip(generations, requests, strict=True):

            def note(token: int, logprob: float, generation: Generation = generation) -> None:
                if not self._news:
                    self._loop.call_soon(self._post)  # runs when this step is over
                self._news.append((generation, Token(token, logprob)))

            def ended(future: asyncio.Future[Completion], generation: Generation = generation) -> None:
                self._post()
                cancelled = future.cancelled()
                failure = MoonflowError("the request was cancelled") if cancelled else future.exception()
                self._server_loop.call_soon_threadsafe(generation.end, failure or future.result())

            try:
                generation.future = self._engine.submit(request, note)
            except Exception as error:
                self._server_loop.call_soon_threadsafe(generation.end, error)
            else:
                generation.future.add_done_callback(ended)

    def _stop(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.call_soon(self._loop.stop)

    def _cancel(self, generation: Generation) -> None:
        if generation.future is not None:
            generation.future.cancel()

    def _post(self) -> None:
        if self._news:
            news, self._news = self._news, []
            self._server_loop.call_soon_threadsafe(self._deliver, news)

    def _deliver(self, news: list[tuple[Generation, Token]]) -> None:
        for generation, token in news:
            generation.receive(token)
        self._on_tokens(len(news))
