"""POST /v1/chat/completions: read the request, have it generated, answer, and stop when the client leaves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from starlette.types import Receive, Scope, Send

from components.serve.answer import Answer, ReadyModel, send_error
from components.serve.errors import ApiError, overloaded
from components.serve.limits import BODY_SECONDS, MAX_BODY_BYTES, MAX_REQUESTS, MAX_WAITING, SMALL_BODY_BYTES
from components.serve.metrics import ServerMetrics
from components.serve.openai_api import Asked, ChatRequest, parse, to_engine
from components.serve.preparation import Memory, Threads

CLIENT_LEFT = 499  # nginx's status; it appears in the metrics only
Result = TypeVar("Result")
logger = logging.getLogger("moonflow.serve")


class _ClientLeftError(Exception):
    pass


class ChatCompletions:
    """The endpoint, an ASGI application."""

    def __init__(self, model_name: str, ready: Callable[[], ReadyModel], metrics: ServerMetrics) -> None:
        """
        Args:
            ready: gives the loaded checkpoint; raises ApiError while there is none.
        """
        self._model_name = model_name
        self._ready = ready
        self._metrics = metrics
        self._under_way = 0
        self._memory = Memory()
        self._threads = Threads()

    def close(self) -> None:
        """Prepare no more requests."""
        self._threads.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived = time.monotonic()
        self._metrics.in_flight.inc()
        status, answer = 500, None
        try:
            with self._memory.holding() as hold:
                body = await _read_body(scope, receive, hold)
                with self._counted():
                    answer = await self._begin(body, receive, hold)
                    del body
                    await _unless_gone(answer.send(send), receive)
            status = 200
        except _ClientLeftError:
            status = CLIENT_LEFT
        except ApiError as error:
            status = error.status
            await send_error(send, error)
        except Exception as failure:
            logger.exception("a chat completion failed")
            told = ApiError(500, f"the server failed: {type(failure).__name__}")
            await (answer.fail(send, told) if answer else send_error(send, told))
        finally:
            if answer is not None:
                answer.abandon()
                if answer.first_token_at is not None:
                    self._metrics.first_token(answer.first_token_at - arrived)
            self._metrics.in_flight.dec()
            self._metrics.answered(status, time.monotonic() - arrived)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the request while the body runs; ApiError (503) if too many are under way."""
        if self._under_way >= MAX_REQUESTS:
            raise overloaded(f"{MAX_REQUESTS} requests are under way already")
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    async def _begin(self, body: bytes, receive: Receive, hold: Callable[[int], None]) -> Answer:
        """Read and check the request, and put it into the engine's queue."""
        self._check_queue(self._ready(), 1)
        if len(body) <= SMALL_BODY_BYTES and _is_light(chat := parse(body)):
            asked, loaded = self._prepare(chat, hold)
        else:
            chat, (asked, loaded) = await _unless_gone(self._threads.run(lambda: self._read(body, hold)), receive)
        self._check_queue(loaded, len(asked.requests))
        self._metrics.prompted(asked.prompt_tokens)
        return Answer(chat, asked, loaded)

    def _check_queue(self, loaded: ReadyModel, more: int) -> None:
        if loaded.engine.waiting + more > MAX_WAITING:
            raise overloaded(f"{loaded.engine.waiting} sequences are waiting already, and {MAX_WAITING} may")

    def _read(self, body: bytes, hold: Callable[[int], None]) -> tuple[ChatRequest, tuple[Asked, ReadyModel]]:
        chat = parse(body)
        return chat, self._prepare(chat, hold)

    def _prepare(self, chat: ChatRequest, hold: Callable[[int], None]) -> tuple[Asked, ReadyModel]:
        if chat.model != self._model_name:
            told = f"the model {chat.model!r} does not exist; this server has {self._model_name!r}"
            raise ApiError(404, told, "model", "model_not_found")
        loaded = self._ready()
        return to_engine(chat, loaded.tokenizer, loaded.image_config, loaded.context, hold), loaded


def _is_light(chat: ChatRequest) -> bool:
    """Whether the request is a small body of texts alone."""
    return not chat.offers_tools and all(isinstance(message.get("content"), str) for message in chat.messages)


async def _read_body(scope: Scope, receive: Receive, hold: Callable[[int], None]) -> bytes:
    """Raises ApiError for a body over MAX_BODY_BYTES (413), before it is in memory, or over BODY_SECONDS (408)."""
    too_large = ApiError(413, f"the body exceeds {MAX_BODY_BYTES} bytes", None, "request_too_large")
    announced = dict(scope["headers"]).get(b"content-length", b"0")
    if int(announced) > MAX_BODY_BYTES:  # the HTTP parser let only digits through
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _ClientLeftError
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > MAX_BODY_BYTES:
                    raise too_large
                hold(len(parts[-1]))
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError as error:
        raise ApiError(408, f"the body has not come within {BODY_SECONDS:g} s", None, "request_timeout") from error


async def _unless_gone(work: Awaitable[Result], receive: Receive) -> Result:
    """Do the work, unless the client leaves before it is done: then it is cancelled.

    Raises:
        _ClientLeftError: it left. Else what the work raises.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise _ClientLeftError
        return await doing
    finally:
        doing.cancel()
        leaving.cancel()
