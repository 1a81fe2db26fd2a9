"""HTTP connections within bounds of number, time and size.

httptools keeps a header until it is whole, and uvicorn waits for it without limit, on any number of connections.
(uvicorn's protocol over h11 limits a header's size, but not its time, and is slower.) ``chat`` bounds the bodies.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, Literal

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from components.serve.errors import ApiError, overloaded
from components.serve.limits import (
    ACCEPTED_AT_ONCE,
    HEAD_SECONDS,
    LINGER_SECONDS,
    MAX_CONNECTIONS,
    MAX_HEAD_BYTES,
    MAX_PIPELINED,
    STALLED_SECONDS,
)
from model.boundary import strict_json


class BoundedHttp(HttpToolsProtocol):
    """One connection.

    A client must send a request, or the rest of its headers, by ``_due``. If all connections are taken, a new one
    replaces the one that has been silent for longest, so that silent connections do not keep other clients out.
    """

    _due: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _silent_since = 0.0  # by the loop's clock; counts while nothing is being answered
    _unparsed = 0  # bytes received since the parser last reported a part of a request
    _head = 0  # bytes of the request's line, headers and trailers so far
    _reading: Literal["", "head", "body"] = ""  # the part of a request that has begun and not ended
    _refusal: ApiError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._silent_since = self.loop.time()
        self._owe(HEAD_SECONDS)
        if len(self.connections) > MAX_CONNECTIONS:
            others = [other for other in self.connections if isinstance(other, BoundedHttp) and other is not self]
            silent = [other for other in others if not other._answering]
            if silent:
                min(silent, key=lambda other: other._silent_since).transport.abort()
            else:
                self._refuse(overloaded(f"all {MAX_CONNECTIONS} connections are taken"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._due is None:
            self._owe(HEAD_SECONDS)  # the beginning of a further request
        self._unparsed += len(data)
        super().data_received(data)
        # A header that is not whole yet, which the parser keeps; so are trailers.
        if self._unparsed > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(_too_large())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if len(self.pipeline) >= MAX_PIPELINED:
            self._refusal = overloaded(f"{MAX_PIPELINED} requests are waiting on this connection already")
            raise self._refusal
        self._head, self._reading = 0, "head"
        if self._due is None:  # it came after another request in one piece
            self._owe(HEAD_SECONDS)

    def on_url(self, url: bytes) -> None:
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(name, value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unparsed, self._reading = 0, "body"
        self._silent_since = self.loop.time()
        super().on_headers_complete()
        self._settle()  # who reads the body has a clock of its own

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed, self._reading = 0, ""
        self._settle()
        super().on_message_complete()
        if self.cycle.response_complete:  # uvicorn has given up its own clock when more came
            self._owe(LINGER_SECONDS)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._silent_since = self.loop.time()
        if self._reading == "body" and self.cycle.response_complete:  # nobody will read the rest
            self._owe(LINGER_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn when the parser fails, also when one of the callbacks above raises."""
        self._refuse(self._refusal or ApiError(400, msg))

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(STALLED_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    @property
    def _answering(self) -> bool:
        """Whether the client waits for the server, or for its own network to deliver the answer."""
        waits = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        return waits or bool(self.pipeline) or self.transport.get_write_buffer_size() > 0

    def _count(self, *parts: bytes) -> None:
        self._head += sum(map(len, parts))
        if self._head > MAX_HEAD_BYTES:
            self._refusal = _too_large()
            raise self._refusal

    def _owe(self, seconds: float) -> None:
        self._settle()
        self._due = self.loop.call_later(seconds, self._overdue)

    def _settle(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _overdue(self) -> None:
        self._due = None
        if self.flow.read_paused or self._answering:  # it is we who let it wait
            self._owe(HEAD_SECONDS)
        elif self._reading == "head":
            self._refuse(ApiError(408, f"the headers have not come within {HEAD_SECONDS:g} s", None, "request_timeout"))
        else:  # it has asked nothing, or has its answer
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Answer with the error, without the application, and close."""
        self._settle()
        if self.cycle is None or self.cycle.response_complete:  # else an answer is under way, which this would break
            body = strict_json.write(error.body).encode()
            headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
            lines = [f"{name}: {value}\r\n" for name, value in (headers | error.headers).items()]
            status = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
            self.transport.write(f"{status}{''.join(lines)}\r\n".encode() + body)
        self.transport.close()


def _too_large() -> ApiError:
    return ApiError(431, f"the headers exceed {MAX_HEAD_BYTES} bytes", None, "headers_too_large")


OPTIONS: dict[str, Any] = {
    "http": BoundedHttp,
    "ws": "none",
    "backlog": ACCEPTED_AT_ONCE,
    "log_level": "warning",
    "access_log": False,
}
"""How uvicorn serves our application, wherever it does."""
