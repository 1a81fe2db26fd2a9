"""A busy engine, a failing one, a server that is told to stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from components.serve.stage import serving
from model.rollout import embedded

ASK: dict[str, Any] = {"model": "moonflow", "messages": [{"role": "user", "content": "Which?"}], "temperature": 1.0}


def test_a_decode_step_does_not_hold_up_the_event_loop(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    decode, stepping = embedded.decode, threading.Event()

    def slow(*arguments):
        stepping.set()
        time.sleep(4.0)
        return decode(*arguments)

    monkeypatch.setattr(embedded, "decode", slow)
    with serving(checkpoint, "moonflow", 60) as address:
        asking = threading.Thread(
            target=lambda: httpx.post(f"{address}/v1/chat/completions", json=ASK | {"max_tokens": 2}, timeout=60)
        )
        asking.start()
        assert stepping.wait(30)
        start = time.monotonic()
        assert httpx.get(f"{address}/health").status_code == 200
        assert "moonflow_batch_rows 1.0" in httpx.get(f"{address}/metrics").text
        assert time.monotonic() - start < 3.0
        asking.join()


def test_an_engine_failure_is_every_callers_500_and_the_next_is_answered(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    decode, broken = embedded.decode, True

    def breaks(*arguments):
        if broken:
            raise RuntimeError("out of memory")
        return decode(*arguments)

    monkeypatch.setattr(embedded, "decode", breaks)
    with serving(checkpoint, "moonflow", 60) as address:
        url = f"{address}/v1/chat/completions"
        failed = httpx.post(url, json=ASK | {"max_tokens": 3})
        assert (failed.status_code, failed.json()["error"]["type"]) == (500, "server_error")
        # The first token of a stream comes from the prefill, so the failure ends a stream that has begun.
        events = httpx.post(url, json=ASK | {"max_tokens": 3, "stream": True}).text.strip().split("\n\n")
        assert json.loads(events[-1].removeprefix("data: "))["error"]["type"] == "server_error"
        broken = False
        assert httpx.post(url, json=ASK | {"max_tokens": 3}).status_code == 200


@contextmanager
def process(checkpoint: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "components.serve.server", "--checkpoint", str(checkpoint), "--port", str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, cwd=Path(__file__).parents[3], env=environment)
    try:
        yield server, f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def test_a_stopped_server_finishes_what_it_has_and_takes_no_more(checkpoint: Path):
    with process(checkpoint) as (server, address):
        statuses = []
        while not statuses or statuses[-1] != 200:
            assert server.poll() is None
            try:
                statuses.append(httpx.get(f"{address}/health").status_code)
            except httpx.TransportError:
                time.sleep(0.05)
        assert set(statuses) <= {503, 200}  # it listens before it is ready, and says so
        body = ASK | {"max_tokens": 120, "seed": 3, "stream": True}
        lines = []
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as stream:
            source = stream.iter_lines()
            lines.append(next(source))
            server.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 20
            refused = False
            while not refused and time.monotonic() < deadline:
                try:
                    httpx.get(f"{address}/health")
                except httpx.ConnectError:
                    refused = True
                except httpx.TransportError:
                    pass  # it was let in just before the door closed
            assert refused
            lines += list(source)
        assert [line for line in lines if line][-1] == "data: [DONE]"
        server.wait(30)
        assert server.returncode in (0, -signal.SIGTERM)
