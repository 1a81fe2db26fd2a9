"""The engine's own process: takes requests from the server's end of a socket and answers with every step's tokens.

python -m components.serve.engine_worker CHECKPOINT DESCRIPTOR, as components.serve.engine_process starts it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from functools import partial
from pathlib import Path

from components.serve.engine_messages import (
    Begin,
    Cancel,
    FinishReason,
    LoadResult,
    Message,
    MessageReader,
    Step,
    encode,
)
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import Completion, Request

logger = logging.getLogger("moonflow.serve")


class EngineWorker:
    """Serves one connection until its other end is gone; then the process ends at once: nobody is left to answer."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._loop = asyncio.new_event_loop()
        self._futures: dict[int, asyncio.Future[Completion]] = {}
        self._tokens: list[tuple[int, int, float]] = []  # of this step
        self._logged: BaseException | None = None

    def run(self, checkpoint: Path) -> None:
        # A thread reads, so that large requests arrive during steps, and the connection's end is noticed at once.
        threading.Thread(target=self._listen, name="listen", daemon=True).start()
        try:
            self._engine = EmbeddedEngine.load(checkpoint)
            # The first step compiles decoding, unless its code is cached: no caller waits for that.
            step = Request([0], max_new_tokens=2, temperature=0.0)
            self._loop.run_until_complete(self._engine.generate([step]))
        except Exception as error:
            self._send(LoadResult(str(error) or type(error).__name__))
            return
        self._send(LoadResult(""))
        self._loop.run_forever()

    def _listen(self) -> None:
        decoder = MessageReader()
        try:
            while data := self._connection.recv(2**20):
                for message in decoder.feed(data):
                    self._loop.call_soon_threadsafe(self._handle, message)
        except ConnectionError:
            pass
        os._exit(0)

    def _handle(self, message: Message) -> None:
        if isinstance(message, Begin):
            for number, request in message.requests:
                self._begin(number, request)
        elif isinstance(message, Cancel) and message.number in self._futures:
            self._futures[message.number].cancel()

    def _begin(self, number: int, request: Request) -> None:
        def note(token: int, logprob: float) -> None:
            if not self._tokens:
                self._loop.call_soon(self._post)  # runs when this step is over, before the next
            self._tokens.append((number, token, logprob))

        try:
            future = self._engine.submit(request, note)
        except Exception as error:
            self._send(Step([], {}, {number: f"{type(error).__name__}: {error}"}))
        else:
            self._futures[number] = future
            future.add_done_callback(partial(self._ended, number))

    def _post(self) -> None:
        """Send this step's tokens, and which requests have ended with them."""
        tokens, self._tokens = self._tokens, []
        ended: dict[int, FinishReason] = {}
        for number, _, _ in tokens:
            future = self._futures.get(number)
            if future is not None and future.done() and not future.cancelled() and future.exception() is None:
                ended[number] = self._futures.pop(number).result().finish_reason
        self._send(Step(tokens, ended, {}))

    def _ended(self, number: int, future: asyncio.Future[Completion]) -> None:
        if self._futures.pop(number, None) is None:
            return  # told with its last token
        error = None if future.cancelled() else future.exception()
        if error is not None and error is not self._logged:  # a failed step is every request's failure, told once
            self._logged = error
            logger.error("the engine failed", exc_info=error)
        told = "the request was cancelled" if error is None else f"{type(error).__name__}: {error}"
        self._send(Step([], {}, {number: told}))

    def _send(self, message: Message) -> None:
        try:
            self._connection.sendall(encode(message))
        except ConnectionError:
            os._exit(0)


def main() -> None:
    # The server ends this process, after it has answered its requests. A signal to the whole group or container must
    # not end the engine first.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.SIG_IGN)
    EngineWorker(socket.socket(fileno=int(sys.argv[2]))).run(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
