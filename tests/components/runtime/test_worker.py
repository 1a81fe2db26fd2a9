from __future__ import annotations

import os
import subprocess
import sys

import pytest

from components.runtime.launcher.work import torchrun
from components.runtime.worker import REFUSED


def worker(**variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MOONFLOW_", "AWS_"))}
    command = [sys.executable, "-m", "components.runtime.worker"]
    return subprocess.run(command, env={**kept, **variables}, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({}, "MOONFLOW_STEP is not set: the worker is started by"),
        ({"MOONFLOW_STEP": "parl", "MOONFLOW_CONFIG": "[1]"}, "MOONFLOW_CONFIG is no JSON object: '[1]'"),
        ({"MOONFLOW_STEP": "parl", "WORLD_SIZE": "2"}, "parl cannot run as 2 ranks"),
        ({"MOONFLOW_STEP": "parl"}, "MOONFLOW_STORE is not set"),
    ],
)
def test_bad_input_is_one_marked_line_and_is_not_tried_again(variables: dict[str, str], line: str) -> None:
    done = worker(**variables)
    assert done.returncode == REFUSED
    assert done.stderr.startswith(f"moonflow error: {line}") and done.stderr.count("\n") == 1, done.stderr


def test_a_missing_service_is_no_fault_of_the_input() -> None:
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
    away = {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "MOONFLOW_STORE": "s3://bucket/runs", **keys}
    done = worker(MOONFLOW_STEP="parl", MOONFLOW_RUN_ID="r", **away)
    assert done.returncode == 1 and "cannot be reached" in done.stderr, done.stderr


def test_torchrun_s_exit_status_is_that_of_the_worker_that_refused() -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MOONFLOW_", "AWS_"))}
    command = [sys.executable, *torchrun("--standalone", "--nproc-per-node=1")[1:]]
    done = subprocess.run(command, env=kept, capture_output=True, text=True, timeout=120)
    assert done.returncode == REFUSED and "moonflow error: MOONFLOW_STEP is not set" in done.stderr
