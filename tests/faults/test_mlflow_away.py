from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.runtime.checkpoints.manifest import METRICS, fetch
from components.runtime.step import read_metrics, run_step
from components.runtime.store.object_store import ObjectStore
from model.boundary.errors import MoonflowError
from tests.counted import Stage, counting
from tests.http_server import free_port
from tests.waiting import happens

pytestmark = pytest.mark.services


class Server:
    """An MLflow server that can be stopped and started again on the same port and database."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = {
            "backend-store-uri": f"sqlite:///{self._folder / 'mlflow.db'}",
            "artifacts-destination": str(self._folder / "artifacts"),
            "host": "127.0.0.1",
            "port": self.port,
            "workers": 1,
        }
        with (self._folder / "mlflow.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *(f"--{name}={value}" for name, value in options.items())],
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=2).close()
                return
            except OSError:
                assert time.monotonic() < deadline, (self._folder / "mlflow.log").read_text()[-2000:]
                time.sleep(0.1)

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    made.start()
    yield made
    made.stop()


def history(client: MlflowClient) -> list[tuple[int, float]]:
    """The (count, value) pairs that MLflow has of the step ``counted``."""
    (experiment,) = client.search_experiments(filter_string="name = 'moonflow'")
    runs = client.search_runs([experiment.experiment_id], "tags.`moonflow.step` = 'counted'")
    points = client.get_metric_history(runs[0].info.run_id, "loss/text") if runs else []
    return sorted((point.step, point.value) for point in points)


def until_three_arrived(client: MlflowClient) -> None:
    """Wait until the run has begun to send."""
    assert happens(lambda: len(history(client)) >= 3, 60, pause=0.2)


@pytest.mark.parametrize("seconds", [0, pytest.param(120, marks=pytest.mark.long)])
def test_metrics_of_an_outage_arrive_later_and_training_continues(
    step_environment: str,
    server: Server,
    define: Callable[[Stage], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds: int,
) -> None:
    """``seconds``: how long the steps during the outage take."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    client = MlflowClient(server.address)

    def outage(done: int) -> None:
        if done == 3:
            until_three_arrived(client)
            server.stop()
        if 3 < done < 9:
            time.sleep(seconds / 5)
        if done == 9:
            server.start()

    define(counting(meanwhile=outage))
    made = run_step("counted", {"steps": 10})
    assert made.complete and made.mlflow_run_id
    assert "MLflow is away, metrics are kept in" in capsys.readouterr().err
    assert history(client) == [(step, 1 / step) for step in range(1, 11)], "each arrived once"
    assert client.get_run(made.mlflow_run_id).info.status == "FINISHED"


@pytest.fixture
def pod(step_environment: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The environment of a pod: no run folder, so that all local files go with the process; returns the run id."""
    monkeypatch.delenv("MOONFLOW_RUN_DIR")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return step_environment


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [15, pytest.param(120, marks=pytest.mark.long)])
def test_a_pod_waits_for_mlflow_because_its_spool_ends_with_it(
    pod: str,
    server: Server,
    define: Callable[[Stage], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds: int,
) -> None:
    """It must wait longer than the ten seconds of a local run."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    client = MlflowClient(server.address)
    back = threading.Timer(seconds, server.start)

    def outage(done: int) -> None:
        if done == 3:
            until_three_arrived(client)
            server.stop()
        if done == 10:
            back.start()

    define(counting(meanwhile=outage))
    made = run_step("counted", {"steps": 10})
    back.join()
    assert "waiting up to 300 s for MLflow (MOONFLOW_MLFLOW_WAIT_S)" in capsys.readouterr().err
    assert history(client) == [(step, 1 / step) for step in range(1, 11)], "each arrived once"
    assert client.get_run(made.mlflow_run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_a_pod_gives_up_and_says_where_the_history_is(
    pod: str,
    define: Callable[[Stage], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    store: ObjectStore,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MOONFLOW_MLFLOW_WAIT_S", "2")
    define(counting())
    made = run_step("counted", {"steps": 4})
    told = capsys.readouterr().err
    assert "waiting up to 2 s" in told and "metrics.jsonl in the step's manifest holds the whole history" in told
    fetch(store, made.uri, tmp_path / "got", [METRICS])
    assert [row["step"] for row in read_metrics(tmp_path / "got")] == [1, 2, 3, 4]


@pytest.mark.parametrize("wait", ["soon", "-1", "nan", "inf"])
def test_a_wait_that_is_no_number_of_seconds_is_refused(
    pod: str, define: Callable[[Stage], None], monkeypatch: pytest.MonkeyPatch, wait: str
) -> None:
    monkeypatch.setenv("MOONFLOW_MLFLOW_WAIT_S", wait)
    define(counting())
    with pytest.raises(MoonflowError, match=f"MOONFLOW_MLFLOW_WAIT_S is '{wait}': give the seconds"):
        run_step("counted", {})
