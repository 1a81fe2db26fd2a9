"""Two small runs with other seeds: killed, failed, continued, and compared in MLflow."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from components.runtime.checkpoints.step_checkpoints import newest
from components.runtime.store.open_store import open_store
from pipelines.progress import task_state
from pipelines.services import Services
from tests.pipelines.commands import processes
from tests.pipelines.test_smoke_run import task_process

pytestmark = [pytest.mark.services, pytest.mark.slow]

SMALL = (
    "prepare_data.text_samples=200",
    "prepare_data.image_samples=100",
    "joint_pretrain.steps=6",
    "mid_train.steps=2",
    "zero_vision_sft.steps=1",
    "joint_rl.iterations=1",
    "joint_rl.prompts_per_iteration=2",
    "parl.iterations=1",
    "evaluate.samples=2",
    "evaluate.max_failed_episodes=0.9",
)


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    calls: list[subprocess.Popen[str]] = []
    yield calls
    for process in calls:
        process.kill()  # what it started notices and ends as well


def start(folder: Path, started: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipelines.cli", "seeds", "--profile", "smoke", "--seeds", "2", "--json"]
    command += ["--run-dir", str(folder), *(word for value in SMALL for word in ("--set", value))]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    started.append(process)
    return process


def until_running(process: subprocess.Popen[str], run_dir: Path, step: str) -> None:
    deadline = time.time() + 900
    while task_state(run_dir, step).state != "running":
        assert process.poll() is None, process.communicate()
        assert time.time() < deadline, f"{step} did not begin in time"
        time.sleep(0.05)


@pytest.mark.timeout(1800)  # three runs of a whole pipeline; its own waits are longer than the default
def test_killed_and_failed_runs_go_on_and_all_compare(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    folder = tmp_path / "all"
    first, second = folder / "seeds-1", folder / "seeds-2"

    # 1. Everything is killed during the first run.
    process = start(folder, started)
    until_running(process, first, "joint_pretrain")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.time() + 20
    while left := processes(folder):
        assert time.time() < deadline, left
        time.sleep(0.1)
    assert not (first / "result.json").exists()

    # 2. The first run goes on to its end. A step of the second is killed: that run has failed, the command has not.
    process = start(folder, started)
    until_running(process, second, "joint_pretrain")
    os.kill(task_process(second, "joint_pretrain"), signal.SIGKILL)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    found = json.loads(out.splitlines()[-1])
    assert (found["promoted"], found["failed"]) == ([1], [2])
    assert "vit_pretrain: kept" in out and "promoted 1 of 2" in out
    assert "failed: seeds 2 (joint_pretrain stopped without a message" in out
    kept = (first / "result.json").stat().st_mtime_ns

    # 3. Only the second run goes on.
    process = start(folder, started)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    found = json.loads(out.splitlines()[-1])
    assert (found["promoted"], found["failed"], found["held"]) == ([1, 2], [], [])
    assert (first / "result.json").stat().st_mtime_ns == kept
    assert "vit_pretrain: kept" in out and "seeds 2, 1 of 1 to run" in out
    assert all(suite["n"] == [2, 2] and suite["sd"] is not None for suite in found["suites"])
    assert processes(folder) == []
    for run in (first, second):
        assert (run / "report.html").is_file() and (run / "gitops.git").is_dir()

    compared_in_mlflow(folder, found)
    made_of_other_seeds_and_measured_on_the_same_tasks(folder)


def compared_in_mlflow(folder: Path, found: dict) -> None:
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        runs = dict(database.execute("select run_uuid, name from runs where lifecycle_stage = 'active'"))
        states = dict(database.execute("select name, status from runs where lifecycle_stage = 'active'"))
        tags = database.execute("select run_uuid, value from tags where key = 'mlflow.parentRunId'").fetchall()
        values = database.execute("select run_uuid, key, value from latest_metrics").fetchall()
    children: dict[str, set[str]] = {}  # by the parent's name; both runs have steps of the same names
    for child, parent in tags:
        children.setdefault(runs[parent], set()).add(runs[child])
    assert set(children) == {"seeds-smoke", "smoke-seeds-1", "smoke-seeds-2"}
    assert children["seeds-smoke"] == {"smoke-seeds-1", "smoke-seeds-2"}
    assert "joint_pretrain" in children["smoke-seeds-1"] & children["smoke-seeds-2"]
    assert states["seeds-smoke"] == states["smoke-seeds-1"] == states["smoke-seeds-2"] == "FINISHED"
    metrics = {(runs[run], key): value for run, key, value in values}
    for suite in found["suites"]:
        name = f"eval/{suite['suite']}/{suite['ability']}/{suite['modality']}"
        scores = [metrics[f"smoke-seeds-{number}", name] for number in (1, 2)]
        assert metrics["seeds-smoke", f"{name}/mean"] == pytest.approx(sum(scores) / 2)
        assert metrics["seeds-smoke", f"{name}/worst"] == min(scores)


def made_of_other_seeds_and_measured_on_the_same_tasks(folder: Path) -> None:
    with Services.start(folder) as services:
        store = open_store(services.environment)
        digests = []
        for number in (1, 2):
            manifests = [newest(store, f"smoke-seeds-{number}/{step}") for step in ("prepare_data", "vit_pretrain")]
            digests.append({file.name: file.sha256 for manifest in manifests if manifest for file in manifest.files})
    one, other = digests
    held_out = [name for name in one if name.startswith("eval/")]
    assert held_out and all(one[name] == other[name] for name in held_out)
    assert all(one[name] != other[name] for name in one if name.startswith("train/") or name == "model.safetensors")
