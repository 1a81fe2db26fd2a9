from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from components.runtime.checkpoints.manifest import Manifest, fetch
from components.runtime.step import read_metrics
from components.runtime.store.object_store import ObjectStore

pytestmark = pytest.mark.services

# What a KFP pod runs, with a stage that stops at the given count and waits to be killed.
TASK = """
import os, sys, time
from components.runtime.kfp.entry import task
from components.runtime.step import run_step
from tests.counted import counting, install

def meanwhile(done):
    print(done, flush=True)
    if done == int(sys.argv[1]):
        time.sleep(600)

install(counting(meanwhile=meanwhile))
with task("counted", os.environ["MOONFLOW_RUN_ID"]):
    made = run_step("counted", {"steps": 8})
print(made.uri)
"""


def pod(stops_at: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TASK, str(stops_at)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": "."},
    )


def test_a_killed_task_continues_when_it_is_run_again(
    step_environment: str, store: ObjectStore, tmp_path: Path
) -> None:
    with pod(stops_at=5) as first:
        assert first.stdout is not None
        while first.stdout.readline() != "5\n":
            assert first.poll() is None
        first.send_signal(signal.SIGKILL)
    assert first.returncode == -signal.SIGKILL
    told = json.loads((tmp_path / "tasks" / "counted.json").read_text())
    assert told["state"] == "running", "a killed process cannot change it"

    with pod(stops_at=0) as second:
        said, _ = second.communicate(timeout=120)
    assert second.returncode == 0
    lines = [line for line in said.splitlines() if line.isdigit()]
    assert lines == ["5", "6", "7", "8"], "it continued after its last checkpoint"
    assert json.loads((tmp_path / "tasks" / "counted.json").read_text())["state"] == "done"
    uri = said.splitlines()[-1]
    assert Manifest.model_validate_json(store.get(f"{uri}/manifest.json")).complete
    fetch(store, uri, tmp_path / "got")
    assert [row["step"] for row in read_metrics(tmp_path / "got")] == [1, 2, 3, 4, 5, 6, 7, 8], "no count lost or twice"

    with pod(stops_at=0) as third:
        said, _ = third.communicate(timeout=120)
    assert said.splitlines() == [uri], "finished work is not done again"
