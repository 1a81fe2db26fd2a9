from __future__ import annotations

import os
import subprocess
import sys

import pytest


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
def test_bad_input_is_one_marked_line_and_status_1(variables: dict[str, str], line: str) -> None:
    done = worker(**variables)
    assert done.returncode == 1
    assert done.stderr.startswith(f"moonflow error: {line}") and done.stderr.count("\n") == 1, done.stderr
