"""An HTTP proxy in front of a real object store that spoils some of the requests."""

from __future__ import annotations

import http.client
import itertools
import socket
import struct
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

KINDS = ("error", "reset", "lost", "cut", "hang", "short")
"""error: status 500. reset: the connection breaks, and the store never sees the request. lost: the store does what the
request asks, but its answer ends before the first byte. cut: the answer ends in the middle of the body. hang: silence.
short: an upload ends in the middle, and the store gets only this half."""
_ONLY = {"cut": "GET", "short": "PUT"}

_HOP = {"connection", "expect", "transfer-encoding", "content-length"}
_ERROR = b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"


class FlappingStore:
    """Spoils each ``every``-th request with one of KINDS in turn, but never the same request twice in a row.

    Attributes:
        away: while this event is set, every connection breaks.
        spoiled: how many requests were spoiled in which way.
    """

    def __init__(self, upstream: str, *, every: int = 0, hang_s: float = 30.0) -> None:
        self.upstream = urlsplit(upstream)
        self.hang_s = hang_s
        self.away = threading.Event()
        self.closing = threading.Event()
        self.spoiled: Counter[str] = Counter()
        self.every = every
        self._requests = itertools.count(1)
        self._spared: set[tuple[str, str]] = set()
        self._guard = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.store = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def choose(self, command: str, path: str) -> str:
        """The kind of fault for this request; "" for none."""
        with self._guard:
            if self.away.is_set():
                return "reset"
            if (command, path) in self._spared:
                self._spared.discard((command, path))
                return ""
            if not self.every or next(self._requests) % self.every:
                return ""
            fitting = [kind for kind in KINDS if _ONLY.get(kind, command) == command]
            kind = min(fitting, key=lambda kind: (self.spoiled[kind], kind not in _ONLY))
            self._spared.add((command, path))
            self.spoiled[kind] += 1
            return kind

    def __enter__(self) -> FlappingStore:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    store: FlappingStore

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: these tests make clients go away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _serve(self) -> None:
        asked = self._asked()
        kind = self.server.store.choose(self.command, self.path)
        if kind == "error":
            self._answer(500, [("Content-Type", "application/xml")], _ERROR)
            return
        if kind == "hang":
            self.server.store.closing.wait(self.server.store.hang_s)
        if kind in ("hang", "reset"):
            self._break()
            return
        if kind == "short":
            self._pass_on_half(asked)
            self._break()
            return
        status, headers, body = self._pass_on(asked)
        if kind == "lost":
            self._break()
        else:
            self._answer(status, headers, body, cut=kind == "cut")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _asked(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _pass_on(self, asked: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = self._begin_passing(asked)
        connection.endheaders(asked)
        answer = connection.getresponse()
        body = answer.read()
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP]
        if self.command == "HEAD":
            headers.append(("Content-Length", answer.getheader("Content-Length", "0")))
        connection.close()
        return answer.status, headers, body

    def _pass_on_half(self, asked: bytes) -> None:
        connection = self._begin_passing(asked)
        connection.endheaders(asked[: len(asked) // 2])
        connection.close()

    def _begin_passing(self, asked: bytes) -> http.client.HTTPConnection:
        upstream = self.server.store.upstream
        connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=60)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():  # also the Host, which is signed
            if name.lower() not in _HOP:
                connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(asked)))
        return connection

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut

    def _break(self) -> None:
        """End the connection with a reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Print nothing."""
