from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.runtime.step import run_step
from tests.counted import Stage, counting

pytestmark = [pytest.mark.services, pytest.mark.slow]


class Server:
    """A real MLflow server that is stopped and started again on the same port and database."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
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


def test_metrics_of_an_outage_arrive_later_and_training_goes_on(
    step_environment: str,
    server: Server,
    define: Callable[[Stage], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    client = MlflowClient(server.address)

    def history() -> list[tuple[int, float]]:
        (experiment,) = client.search_experiments(filter_string="name = 'moonflow'")
        runs = client.search_runs([experiment.experiment_id], "tags.`moonflow.step` = 'counted'")
        points = client.get_metric_history(runs[0].info.run_id, "loss/text") if runs else []
        return sorted((point.step, point.value) for point in points)

    def outage(done: int) -> None:
        if done == 3:
            deadline = time.monotonic() + 60
            while not history() or len(history()) < 3:  # the outage hits a run that has begun to send
                assert time.monotonic() < deadline
                time.sleep(0.2)
            server.stop()
        if done == 9:
            server.start()

    define(counting(meanwhile=outage))
    made = run_step("counted", {"steps": 10})
    assert made.complete and made.mlflow_run_id
    assert "MLflow is away, metrics are kept in" in capsys.readouterr().err
    assert history() == [(step, 1 / step) for step in range(1, 11)], "each arrived once"
    assert client.get_run(made.mlflow_run_id).info.status == "FINISHED"
