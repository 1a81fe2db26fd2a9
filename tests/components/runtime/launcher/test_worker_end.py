"""A preempted worker: a real process, its output in a folder store."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from components.runtime.launcher.work import torchrun
from tests.settings import bare_environment


@pytest.mark.parametrize(
    "grouped", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["alone", "under torchrun"]
)
def test_sigterm_ends_a_worker_soon_and_it_goes_on_where_it_was(
    grouped: bool, counted: dict[str, str], tmp_path: Path
) -> None:
    command = (
        torchrun("--standalone", "--nproc-per-node=1") if grouped else ["", "-m", "components.runtime.launcher.worker"]
    )
    environment = {
        **bare_environment(),
        **counted,
        "MOONFLOW_STEP": "counted",
        "MOONFLOW_CONFIG": '{"steps": 1000, "seconds": 0.1}',
        "MOONFLOW_RUN_ID": "r",
        "MOONFLOW_RUN_DIR": str(tmp_path / "pod"),
        "MOONFLOW_STORE": f"file://{tmp_path}/store",
    }
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, *command[1:]],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        told: list[str] = []
        for line in process.stdout:
            told.append(line.strip())
            if len([text for text in told if text.startswith("counted")]) == 3:
                break
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=20)
        assert process.returncode == 128 + signal.SIGTERM, "".join(told) + rest
    assert "counted 3" in told, "it went on from the checkpoint of 2"
    assert "counted 1" not in told
