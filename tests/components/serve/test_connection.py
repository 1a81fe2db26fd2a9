"""Connections that send too much, too slowly or nothing."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import uvicorn

from components.serve import connection
from components.serve.connection import OPTIONS
from components.serve.limits import MAX_HEAD_BYTES, MAX_PIPELINED


async def application(scope, receive, send):
    """Reads what is posted, but for /unread; a body of as many bytes as the path says."""
    assert scope["type"] == "http"
    while scope["method"] == "POST" and scope["path"] != "/unread" and (await receive()).get("more_body"):
        pass
    size = int(scope["path"][1:]) if scope["path"][1:].isdigit() else 2
    headers = [(b"content-length", str(size).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"x" * size})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = uvicorn.Server(uvicorn.Config(application, port=0, lifespan="off", **OPTIONS))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def rest(client: socket.socket) -> bytes:
    """What the server still says before it closes."""
    said = bytearray()
    try:
        while data := client.recv(2**20):
            said += data
    except ConnectionResetError:  # it closed while we were sending
        pass
    return bytes(said)


def status_and_error(answer: bytes) -> tuple[int, dict]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), json.loads(body)["error"]


def sent(port: int, data: bytes) -> bytes:
    with connect(port) as client:
        client.sendall(data)
        return rest(client)


@pytest.mark.parametrize("head", [
    b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * MAX_HEAD_BYTES,  # not whole yet
    b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * (MAX_HEAD_BYTES // 2) + b"\r\n",
    b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\r\n" * MAX_HEAD_BYTES,
])  # fmt: skip
def test_headers_have_a_bound(port: int, head: bytes):
    status, error = status_and_error(sent(port, head))
    assert (status, error["code"], error["type"]) == (431, "headers_too_large", "invalid_request_error")
    assert "the headers exceed 32768 bytes" in error["message"]


def test_a_header_without_end_is_cut_off_early(port: int):
    taken = 0
    with connect(port) as client, pytest.raises(ConnectionError):
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nA: ")
        while taken < 200 * 2**20:
            client.sendall(b"a" * 2**16)
            taken += 2**16
    assert taken < 32 * 2**20  # what the sockets' buffers hold


def test_trailers_have_the_same_bound(port: int):
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nA: "
    assert sent(port, head + b"a" * 20 * MAX_HEAD_BYTES) == b""
    assert sent(port, head + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n") == b""


def test_headers_within_the_bound_and_many_requests_in_one_piece_are_answered(port: int):
    header = {"A": "a" * (MAX_HEAD_BYTES - 1000)}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(3):  # the bound is that of a request, not of a connection
            assert client.post("/", content=b"x" * 2**20, headers=header).status_code == 200
    with connect(port) as client:
        client.sendall((b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 1000 + b"\r\n\r\n") * 99)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert rest(client).count(b"HTTP/1.1 200") == 100


def test_what_is_no_http_is_told_in_openais_shape(port: int):
    for data in (b"\x16\x03\x01\x02\r\n\r\n", b"GET / HTTP/1.1\r\nA B: c\r\n\r\n", b"GET /\xff\xfe HTTP/1.1\r\n\r\n"):
        status, error = status_and_error(sent(port, data))
        assert (status, error["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("begun", [b"GET / HTTP/1.1\r\nHost: x\r\nA: ", b"GE"])
def test_half_a_request_is_closed_in_time(port: int, monkeypatch: pytest.MonkeyPatch, begun: bytes):
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.3)
    start = time.monotonic()
    status, error = status_and_error(sent(port, begun))
    assert (status, error["code"]) == (408, "request_timeout") and 0.2 < time.monotonic() - start < 5
    with connect(port) as client:  # the same after a request that was answered
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + begun)
        assert rest(client).count(b"HTTP/1.1 ") == 2


def test_one_byte_after_another_wins_no_time(port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.5)
    start = time.monotonic()
    with connect(port) as client, pytest.raises(ConnectionError):
        while time.monotonic() - start < 10:
            client.sendall(b"G" if time.monotonic() == start else b"\r\n")
            time.sleep(0.02)
    assert time.monotonic() - start < 5


def test_silence_is_closed_without_a_word(port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    assert sent(port, b"") == b""


def test_an_answer_before_the_bodys_end_is_read_and_then_the_connection_closed(
    port: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(connection, "LINGER_SECONDS", 0.3)
    with connect(port) as client:
        client.sendall(b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n" + b"a" * 2**20)
        start = time.monotonic()
        assert rest(client).startswith(b"HTTP/1.1 200") and time.monotonic() - start < 5


def test_silent_connections_shut_nobody_out(port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 20)
    silent = [connect(port) for _ in range(60)]
    for client in silent[::2]:
        with contextlib.suppress(ConnectionError):
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")  # and no body
    for _ in range(5):
        assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
    for client in silent:
        client.close()


def test_connections_have_a_bound_where_all_are_at_work(port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 2)
    busy = [connect(port) for _ in range(2)]
    for client in busy:  # nobody reads these answers yet
        client.sendall(b"GET /50000000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        client.recv(1)
    with connect(port) as another:
        status, error = status_and_error(rest(another))
    assert (status, error["code"]) == (503, "overloaded")
    assert [len(rest(client)) > 50_000_000 for client in busy] == [True, True]


def test_a_client_that_does_not_read_is_cut_off(port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "STALLED_SECONDS", 0.3)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        client.settimeout(20)
        client.connect(("127.0.0.1", port))
        client.sendall(b"GET /400000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(1.5)
        assert len(rest(client)) < 400_000_000


@pytest.mark.parametrize(("count", "answered"), [(MAX_PIPELINED, MAX_PIPELINED), (14_000, 0)])
def test_only_so_many_requests_stand_behind_one(port: int, count: int, answered: int):
    """14,000 of them, in one piece, took 11 MB."""
    last = b"GET /3 HTTP/1.1\r\nConnection: close\r\n\r\n"
    assert sent(port, b"GET /3 HTTP/1.1\r\n\r\n" * (count - 1) + last).count(b"xxx") == answered
