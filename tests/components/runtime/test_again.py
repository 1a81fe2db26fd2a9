"""A step waits for what is away, and for nothing else."""

from __future__ import annotations

import socket
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from components.promote import registry
from components.promote.forge import Forge
from components.promote.git import clone
from components.runtime.again import Bound, again
from components.runtime.s3 import S3Store
from model.errors import MoonflowError, Transient

QUICK = Bound(attempts=4, first_s=0.001, longest_s=0.002)


class Failing:
    def __init__(self, times: int, error: Exception) -> None:
        self.times, self.error, self.calls = times, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return "made"


def test_a_service_that_comes_back_costs_a_pause_that_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    work = Failing(2, Transient("the store is away"))
    assert again("parl", work, QUICK) == "made" and work.calls == 3
    said = capsys.readouterr().err
    assert "parl: the store is away\nparl: attempt 1 of 4, the next in 0 s\n" in said and "attempt 2 of 4" in said


@pytest.mark.parametrize(("error", "calls"), [
    (Transient("the store is away"), 4), (MoonflowError("a wrong parameter"), 1), (ZeroDivisionError(), 1),
])  # fmt: skip
def test_repetition_has_a_bound_and_other_errors_get_none(error: Exception, calls: int) -> None:
    work = Failing(99, error)
    with pytest.raises(type(error)) as told:
        again("parl", work, QUICK)
    assert told.value is error and work.calls == calls


@pytest.mark.parametrize("variables", [{}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "MOONFLOW_RUN_DIR": "runs/a"}],
                         ids=["laptop", "notebook in a cluster"])  # fmt: skip
def test_a_local_run_does_not_wait(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KUBERNETES_SERVICE_HOST", "MOONFLOW_RUN_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    work = Failing(1, Transient("the store is away"))
    with pytest.raises(Transient):
        again("parl", work)
    assert work.calls == 1
    assert 600 < sum(min(15 * 2**n, 240) for n in range(Bound().attempts - 1)) < 1200, "half of it is over 5 min"


def test_a_failed_attempt_leaves_no_model_beside_the_next_one_s() -> None:
    class Model:
        error: Exception

    before: list[weakref.ref[Model]] = []

    def work() -> bool:
        if before:
            return before[0]() is None
        model = Model()
        before.append(weakref.ref(model))
        model.error = Transient("the store is away")
        raise model.error

    assert again("parl", work, QUICK)


@contextmanager
def server(status: int) -> Iterator[str]:
    class Answer(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = do_PUT = do_HEAD = answer

        def log_message(self, *_: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        listening.server_close()


@contextmanager
def nobody() -> Iterator[str]:
    with socket.socket() as bound:  # not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def ask(service: str, address: str) -> None:
    if service == "store":
        S3Store("s3://bucket/runs", endpoint=address, key="k", secret="s").check()
    elif service == "registry":
        registry.aliased("moonflow", "champion")
    elif service == "forge":
        Forge("github", f"{address}/o/r.git").ensure("branch", "commit", "title", "text")
    else:
        with clone(f"{address}/o/r.git"):
            pass


@pytest.mark.parametrize("service", ["store", "registry", "forge", "git"])
@pytest.mark.parametrize("state", ["away", "overloaded", "refusing"])
def test_each_service_tells_being_away_from_refusing(
    service: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOONFLOW_GIT_TOKEN", "token")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    place = nobody() if state == "away" else server(503 if state == "overloaded" else 403)
    with place as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(MoonflowError) as told:
            ask(service, address)
    assert isinstance(told.value, Transient) == (state != "refusing"), told.value
