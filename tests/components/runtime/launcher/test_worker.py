from __future__ import annotations

import subprocess
import sys

import pytest

from components.runtime.launcher.work import torchrun
from components.runtime.launcher.worker import REFUSED
from tests.settings import bare_environment

COMMAND = [sys.executable, "-m", "components.runtime.launcher.worker"]
AWAY = {
    "MOONFLOW_STEP": "parl", "MOONFLOW_RUN_ID": "r", "MOONFLOW_STORE": "s3://bucket/runs",
    "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "AWS_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
}  # fmt: skip


def worker(**variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(COMMAND, env=bare_environment(**variables), capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({}, "MOONFLOW_STEP is not set: the worker is started by"),
        ({"MOONFLOW_STEP": "parl", "MOONFLOW_CONFIG": "[1]"}, "MOONFLOW_CONFIG is not a JSON object: '[1]'"),
        ({"MOONFLOW_STEP": "evaluate", "WORLD_SIZE": "2"}, "evaluate cannot run as 2 ranks"),
        ({"MOONFLOW_STEP": "parl"}, "MOONFLOW_STORE is not set"),
    ],
)
def test_bad_input_is_one_marked_line_and_is_not_tried_again(variables: dict[str, str], line: str) -> None:
    done = worker(**variables)
    assert done.returncode == REFUSED
    assert done.stderr.startswith(f"moonflow error: {line}") and done.stderr.count("\n") == 1, done.stderr


def test_a_missing_service_is_no_fault_of_the_input() -> None:
    done = worker(**AWAY)
    assert done.returncode == 1 and "cannot be reached" in done.stderr, done.stderr


def test_a_pod_waits_for_a_missing_service_until_it_is_asked_to_end() -> None:
    pod = bare_environment(**AWAY, KUBERNETES_SERVICE_HOST="10.0.0.1")
    process = subprocess.Popen(COMMAND, env=pod, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    told = next((line for line in process.stderr if "attempt 1 of 8" in line), "")
    process.terminate()
    process.communicate(timeout=20)
    assert told.startswith("parl: attempt 1 of 8, the next in ") and process.returncode == 143


def test_torchrun_s_exit_status_is_that_of_the_worker_that_refused() -> None:
    command = [sys.executable, *torchrun("--standalone", "--nproc-per-node=1")[1:]]
    done = subprocess.run(command, env=bare_environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == REFUSED and "moonflow error: MOONFLOW_STEP is not set" in done.stderr
