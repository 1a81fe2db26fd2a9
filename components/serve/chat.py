"""POST /v1/chat/completions: read the request, have it generated, answer, and stop when the client leaves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.types import Receive, Scope, Send

from components.serve.answer import Answer, Loaded, send_error
from components.serve.errors import ApiError
from components.serve.metrics import Metrics
from components.serve.openai_api import parse, to_engine

MAX_BODY_BYTES = 32 * 2**20
SMALL_BODY_BYTES = 16 * 2**10  # larger ones are read on another thread, so that they hold up nobody
MAX_WAITING = 1024  # sequences in the queue; more would only time out there
CLIENT_LEFT = 499  # as nginx calls it; only the metrics see it
logger = logging.getLogger("moonflow.serve")


class _ClientLeftError(Exception):
    pass


class ChatCompletions:
    """The endpoint, an ASGI application."""

    def __init__(self, model_name: str, ready: Callable[[], Loaded], metrics: Metrics) -> None:
        """
        Args:
            ready: gives the loaded checkpoint; raises ApiError while there is none.
        """
        self._model_name = model_name
        self._ready = ready
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived = time.monotonic()
        self._metrics.in_flight.inc()
        status, answer = 500, None
        try:
            answer = await self._begin(scope, receive)
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

    async def _begin(self, scope: Scope, receive: Receive) -> Answer:
        """Read and check the request, and put it into the engine's queue."""
        body = await _read_body(scope, receive)
        chat = await _off_loop(len(body), parse, body)
        if chat.model != self._model_name:
            told = f"the model {chat.model!r} does not exist; this server has {self._model_name!r}"
            raise ApiError(404, told, "model", "model_not_found")
        loaded = self._ready()
        asked = await _off_loop(len(body), to_engine, chat, loaded.tokenizer, loaded.image_config, loaded.context)
        if loaded.engine.waiting + len(asked.requests) > MAX_WAITING:
            raise ApiError(503, f"{loaded.engine.waiting} requests are waiting already; try later", None, "overloaded")
        self._metrics.prompted(asked.prompt_tokens)
        return Answer(chat, asked, loaded)


async def _off_loop(size: int, work: Callable[..., Any], *arguments: Any) -> Any:
    return work(*arguments) if size <= SMALL_BODY_BYTES else await asyncio.to_thread(work, *arguments)


async def _read_body(scope: Scope, receive: Receive) -> bytes:
    """Raises ApiError (413) for a body over MAX_BODY_BYTES, before it is in memory."""
    too_large = ApiError(413, f"the body exceeds {MAX_BODY_BYTES} bytes", None, "request_too_large")
    announced = dict(scope["headers"]).get(b"content-length", b"0")
    if int(announced) > MAX_BODY_BYTES:  # the HTTP parser let only digits through
        raise too_large
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientLeftError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY_BYTES:
            raise too_large
        if not message.get("more_body", False):
            return b"".join(parts)


async def _unless_gone(work: Awaitable[None], receive: Receive) -> None:
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
        await doing
    finally:
        doing.cancel()
        leaving.cancel()
