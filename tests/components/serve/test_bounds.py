"""Requests that ask for more work than they may: refused before it is done, while everybody else is answered."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from components.serve import chat, limits, preparation
from components.serve.errors import ApiError
from components.serve.limits import MAX_BODY_BYTES, MAX_JSON_VALUES
from model.codec.remote import video_files
from model.codec.video import encode_mp4
from model.data.samples import tokenize
from tests.components.serve.media_messages import showing
from tests.odd_media import blank_png
from tests.waiting import in_background

SECONDS = 3.0  # generous, for a busy machine; each of these took longer, up to minutes
ASK = [{"role": "user", "content": "Which?"}]


def ask(address: str, **fields: Any) -> httpx.Response:
    body = json.dumps({"model": "moonflow", "messages": ASK, "max_tokens": 2, "temperature": 0} | fields)
    return httpx.post(f"{address}/v1/chat/completions", content=body, timeout=120)


@contextmanager
def quick(address: str) -> Iterator[None]:
    """The body takes less than SECONDS, and /health less than one all the while."""
    slowest, over = 0.0, threading.Event()

    def watch() -> None:
        nonlocal slowest
        with httpx.Client() as client:
            while not over.wait(0.01):
                start = time.monotonic()
                assert client.get(f"{address}/health", timeout=60).status_code == 200
                slowest = max(slowest, time.monotonic() - start)

    with ThreadPoolExecutor(1) as threads:
        watching = threads.submit(watch)
        start = time.monotonic()
        try:
            yield
            took = time.monotonic() - start
        finally:
            over.set()
        watching.result()
    assert took < SECONDS
    assert slowest < 1.0


def error_of(reply: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert reply.status_code == status, reply.text[:300]
    return reply.json()["error"]


def test_lists_of_types_in_lists_of_types(address: str):
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(4):
        schema = {"type": ["object", "null"] * 20, "properties": {"a": schema}}
    function = {"name": "f", "parameters": schema}
    with quick(address):
        reply = ask(address, tools=[{"type": "function", "function": function}])
    assert reply.status_code == 200


@pytest.mark.parametrize("unit", ["7", "a", "lima ", "🙂", " "])
def test_a_text_as_large_as_a_body_may_be(address: str, unit: str):
    text = unit * (31_000_000 // len(unit.encode()))
    body = json.dumps({"model": "moonflow", "messages": [{"role": "user", "content": text}]}, ensure_ascii=False)
    with quick(address):
        reply = httpx.post(f"{address}/v1/chat/completions", content=body.encode(), timeout=120)
    assert error_of(reply)["code"] == "context_length_exceeded"


@pytest.mark.parametrize("unit", [b"{},", b"1,", b"[],"])
def test_as_many_values_as_a_body_can_hold(address: str, unit: bytes):
    body = b'{"model": "moonflow", "messages": [' + unit * ((MAX_BODY_BYTES - 100) // len(unit)) + b"{}]}"
    with quick(address):
        reply = httpx.post(f"{address}/v1/chat/completions", content=body, timeout=120)
    assert f"more than {MAX_JSON_VALUES:,} values" in error_of(reply)["message"]


def test_as_many_values_as_escapes_can_hide_in_a_calls_arguments(address: str):
    values = "1,".replace(",", "\\u002c") * 4_000_000
    call = '{"id": "a", "function": {"name": "f", "arguments": "{\\"a\\": \\u005b' + values + '1]}"}}'
    body = '{"model": "moonflow", "messages": [{"role": "assistant", "tool_calls": [' + call + "]}]}"
    with quick(address):
        reply = httpx.post(f"{address}/v1/chat/completions", content=body.encode(), timeout=120)
    assert f"arguments have more than {MAX_JSON_VALUES:,} values" in error_of(reply)["message"]


def test_a_picture_is_measured_before_it_is_decoded(address: str):
    small_file = blank_png(7000, 7000)
    assert len(small_file) < 10_000
    with quick(address):
        assert error_of(ask(address, messages=showing(small_file)))["code"] == "context_length_exceeded"
    with quick(address):
        error = error_of(ask(address, messages=showing(blank_png(40_000_000, 1))))
    assert error["code"] == "image_too_large" and "40,000,000 x 1 pixels" in error["message"]
    assert error["param"] == "messages.0.content.0"


def test_pictures_are_measured_together(address: str):
    with quick(address):
        error = error_of(ask(address, messages=showing(*[blank_png(65_535, 700)] * 15)))
    assert error["code"] == "image_too_large" and "pixels to decode; send at most 268,435,456" in error["message"]
    with quick(address):
        error = error_of(ask(address, messages=showing(*[blank_png(7000, 7000)] * 15)))
    assert error["code"] == "image_too_large" and "81,920 patches; send at most 65,536" in error["message"]
    with quick(address):
        error = error_of(ask(address, messages=showing(*[blank_png(28, 28)] * 65)))
    assert error["code"] == "too_many_media" and "at most 64" in error["message"]


def clip(frames: int, side: int = 28) -> bytes:
    return encode_mp4(np.zeros((frames, side, side, 3), np.uint8))


def test_a_video_is_measured_before_it_is_decoded(address: str, monkeypatch: pytest.MonkeyPatch):
    def decode(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(tokenize, "decode_video", decode)
    for video in (clip(300), clip(2, 1000)):  # many chunks; few, of many tokens
        with quick(address):
            error = error_of(ask(address, messages=showing(video, kind="video_url", mime="video/mp4")))
        assert error["code"] == "context_length_exceeded"
    error = error_of(ask(address, messages=showing(*[clip(2)] * 5, kind="video_url", mime="video/mp4")))
    assert error["code"] == "too_many_media" and "at most 4" in error["message"]


def test_a_short_video_is_seen(address: str):
    reply = ask(address, messages=showing(clip(6), kind="video_url", mime="video/mp4"))
    assert reply.status_code == 200 and reply.json()["usage"]["prompt_tokens"] > 30


def test_a_videos_frames_fit_into_memory(address: str):
    error = error_of(ask(address, messages=showing(clip(14, 2600), kind="video_url", mime="video/mp4")))
    assert error["code"] == "video_too_large" and "283,920,000 bytes when it is decoded" in error["message"]


def test_a_video_has_so_much_time(address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(video_files, "MAX_VIDEO_SECONDS", 0.0)
    error = error_of(ask(address, messages=showing(clip(4), kind="video_url", mime="video/mp4")))
    assert error["code"] == "video_too_large" and "processor seconds to decode" in error["message"]


def test_a_text_in_a_videos_place_opens_no_connection(address: str):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        segment = f"http://127.0.0.1:{port}/x.ts"
        texts = [
            f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
            "a=rtpmap:96 H264/90000\n",  # FFmpeg binds the port and waits for what comes
            f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{segment}\n#EXT-X-ENDLIST\n",
            f"ffconcat version 1.0\nfile '{segment}'\n",
        ]
        for text in texts:
            with quick(address):
                error = error_of(ask(address, messages=showing(text.encode(), kind="video_url", mime="video/mp4")))
            assert error["code"] == "invalid_video" and "cannot be decoded" in error["message"]
        listener.settimeout(0.1)
        with pytest.raises(TimeoutError):
            listener.accept()


HEAVY = [{"type": "function", "function": {"name": "f"}}]  # requests with tools are read outside the event loop


def test_others_are_answered_while_a_request_is_prepared(address: str, monkeypatch: pytest.MonkeyPatch):
    def works(*_: object) -> None:
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            sum(range(10_000))
        raise ApiError(400, "it took long")

    light = chat.to_engine
    monkeypatch.setattr(chat, "to_engine", lambda asked, *rest: (works if asked.tools else light)(asked, *rest))
    with quick(address):
        heavy = in_background(1, lambda: ask(address, tools=HEAVY))[0]
        time.sleep(0.2)
        assert ask(address).status_code == 200
        assert not heavy.done()
        assert "it took long" in error_of(heavy.result())["message"]


def test_only_so_many_wait_to_be_prepared(address: str, monkeypatch: pytest.MonkeyPatch):
    begun, go_on = threading.Semaphore(0), threading.Event()

    def waits(*_: object) -> None:
        begun.release()
        go_on.wait(30)
        raise ApiError(400, "it waited")

    monkeypatch.setattr(chat, "to_engine", waits)
    monkeypatch.setattr(preparation, "MAX_PREPARING", 0)
    waiting = in_background(preparation.PREPARING_THREADS, lambda: ask(address, tools=HEAVY))
    try:
        for _ in waiting:
            assert begun.acquire(timeout=30)
        refused = ask(address, tools=HEAVY)
    finally:
        go_on.set()
    error = error_of(refused, 503)
    assert (error["code"], error["type"], refused.headers["retry-after"]) == ("overloaded", "server_error", "1")
    assert ["it waited" in error_of(one.result())["message"] for one in waiting] == [True, True]


def test_only_so_many_are_under_way(address: str, monkeypatch: pytest.MonkeyPatch):
    assert limits.MAX_REQUESTS < limits.MAX_CONNECTIONS
    monkeypatch.setattr(chat, "MAX_REQUESTS", 1)
    begun, go_on = threading.Event(), threading.Event()
    whole = chat.to_engine

    def waits(*rest: Any) -> Any:
        begun.set()
        go_on.wait(30)
        return whole(*rest)

    monkeypatch.setattr(chat, "to_engine", waits)
    (first,) = in_background(1, lambda: ask(address, tools=HEAVY))
    try:
        assert begun.wait(30)
        refused = ask(address)
    finally:
        go_on.set()
    assert error_of(refused, 503)["code"] == "overloaded" and "1 requests are under way" in refused.text
    assert first.result().status_code == 200 and ask(address).status_code == 200


def test_requests_hold_so_many_bytes_together_and_give_them_back(address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preparation, "MAX_HELD_BYTES", 50_000)
    for _ in range(3):  # 84 x 28 pixels take 12 patches of 2,352 bytes
        assert ask(address, messages=showing(blank_png(84, 28))).status_code == 200
    error = error_of(ask(address, messages=showing(blank_png(84, 112))), 503)
    assert error["code"] == "overloaded" and "of 50,000 bytes" in error["message"]
    assert error_of(ask(address, user="x" * 50_000), 503)["code"] == "overloaded"
    assert ask(address).status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chat, "BODY_SECONDS", 0.3)
    with socket.create_connection(httpx.URL(address).netloc.decode().split(":"), timeout=20) as client:  # type: ignore
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        answer = client.recv(2**16) + client.recv(2**16)
    assert answer.startswith(b"HTTP/1.1 408 ") and b"request_timeout" in answer
