"""A busy engine, a failing one, a server that is told to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from components.serve.stage import serving
from tests.http_server import free_port
from tests.waiting import happens, in_background

ASK: dict[str, Any] = {"model": "moonflow", "messages": [{"role": "user", "content": "Which?"}], "temperature": 1.0}


def engine_of(server: int, checkpoint: Path) -> psutil.Process:
    """The process of a server's engine; where one process has several servers of a checkpoint, the last one's."""
    wanted = {"components.serve.engine_worker", str(checkpoint)}
    return [child for child in psutil.Process(server).children() if wanted <= set(child.cmdline())][-1]


def test_a_busy_engine_does_not_hold_up_the_event_loop(address: str, checkpoint: Path):
    engine = engine_of(os.getpid(), checkpoint)
    engine.suspend()  # as in a decode step that takes very long
    try:
        asked = ask_in_background(address, ASK | {"max_tokens": 2})
        assert httpx.get(f"{address}/health").status_code == 200
        assert not asked.done()
    finally:
        engine.resume()
    assert asked.result(60).status_code == 200


def ask_in_background(address: str, body: dict[str, Any]) -> Future[httpx.Response]:
    """Returns once the request waits for the engine."""
    (asked,) = in_background(1, lambda: httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60))
    assert happens(lambda: "moonflow_queue_length 1.0" in httpx.get(f"{address}/metrics").text)
    return asked


def test_an_engine_failure_is_every_callers_500_and_the_next_is_answered(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    broken = tmp_path / "broken"
    (tmp_path / "sitecustomize.py").write_text(  # run in the engine's process as it starts
        "import os\n"
        "from model.rollout import decoding\n"
        "step = decoding.Reader.step\n"
        "def breaks(*arguments):\n"
        f"    if os.path.exists({str(broken)!r}):\n"
        "        raise RuntimeError('out of memory')\n"
        "    return step(*arguments)\n"
        "decoding.Reader.step = breaks\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with serving(checkpoint, "moonflow", 60) as address:
        broken.touch()  # once it is ready, which takes a step
        url = f"{address}/v1/chat/completions"
        failed = httpx.post(url, json=ASK | {"max_tokens": 3})
        assert (failed.status_code, failed.json()["error"]["type"]) == (500, "server_error")
        # The first token of a stream comes from the prefill, so the failure ends a stream that has begun.
        events = httpx.post(url, json=ASK | {"max_tokens": 3, "stream": True}).text.strip().split("\n\n")
        assert json.loads(events[-1].removeprefix("data: "))["error"]["type"] == "server_error"
        broken.unlink()
        assert httpx.post(url, json=ASK | {"max_tokens": 3}).status_code == 200


def test_a_dead_engine_is_its_callers_500_and_the_servers_bad_health(checkpoint: Path):
    body = ASK | {"max_tokens": 200}
    with serving(checkpoint, "moonflow", 60) as address:
        engine = engine_of(os.getpid(), checkpoint)
        engine.suspend()
        asked = ask_in_background(address, body)
        engine.kill()
        failed = asked.result(30)
        assert (failed.status_code, failed.json()["error"]["type"]) == (500, "server_error")
        health = httpx.get(f"{address}/health")
        assert (health.status_code, health.json()["status"]) == (500, "failed")
        assert "ended with status -9" in health.json()["error"]
        late = httpx.post(f"{address}/v1/chat/completions", json=body)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "model_not_ready")
        assert "moonflow_queue_length 0.0" in httpx.get(f"{address}/metrics").text


@contextmanager
def process(checkpoint: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    port = free_port()
    command = [sys.executable, "-m", "components.serve.server", "--checkpoint", str(checkpoint), "--port", str(port)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, cwd=Path(__file__).parents[3], env=environment, start_new_session=True)
    try:
        yield server, f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def await_ready(server: subprocess.Popen, address: str) -> set[int]:
    """What /health answered on the way."""
    statuses = []
    while not statuses or statuses[-1] != 200:
        assert server.poll() is None
        try:
            statuses.append(httpx.get(f"{address}/health").status_code)
        except httpx.TransportError:
            time.sleep(0.05)
    return set(statuses)


def refused(address: str) -> bool:
    try:
        httpx.get(f"{address}/health")
    except httpx.ConnectError:
        return True
    except httpx.TransportError:
        pass  # it was let in just before the door closed
    return False


def test_a_stopped_server_finishes_what_it_has_and_takes_no_more(checkpoint: Path):
    with process(checkpoint) as (server, address):
        assert await_ready(server, address) <= {503, 200}  # it listens before it is ready, and says so
        engine = engine_of(server.pid, checkpoint)
        body = ASK | {"max_tokens": 120, "seed": 3, "stream": True}
        lines = []
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as stream:
            source = stream.iter_lines()
            lines.append(next(source))
            for told in (signal.SIGINT, signal.SIGTERM):  # from a terminal, or who stops all processes of a container
                engine.send_signal(told)
            os.killpg(server.pid, signal.SIGTERM)
            assert happens(lambda: refused(address), 20, pause=0)
            lines += list(source)
        assert [line for line in lines if line][-1] == "data: [DONE]"
        server.wait(30)
        assert server.returncode in (0, -signal.SIGTERM)
        assert not engine.is_running()


def test_a_killed_server_leaves_no_engine(checkpoint: Path):
    with process(checkpoint) as (server, address):
        await_ready(server, address)
        engine = engine_of(server.pid, checkpoint)
        body = ASK | {"max_tokens": 200, "stream": True}
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as stream:
            next(stream.iter_lines())
            server.kill()
        engine.wait(10)  # raises psutil.TimeoutExpired
