from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from components.runtime.checkpoints import newest
from components.runtime.store import ObjectStore
from pipelines.services import Services
from tests.pipelines.conftest import complete, processes, start

pytestmark = [pytest.mark.services, pytest.mark.slow]


def kill_in(run_dir: Path, step: str, done: int) -> int:
    """Start the run and kill -9 its process group when ``step`` reports ``done`` units; returns the log's size then."""
    process = start(run_dir)
    path = run_dir / "progress" / f"{step}.json"
    deadline = time.time() + 400
    while True:
        assert process.poll() is None, process.communicate()[1]
        assert time.time() < deadline, f"{step} did not get to {done} in time"
        if path.exists() and (state := json.loads(path.read_text()))["done"] >= done:
            assert state["done"] < state["total"], "too late: the step is over"
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    died = time.time()
    process.communicate()
    while left := processes(run_dir):  # the worker and the services notice by themselves
        assert time.time() < died + 20, left
        time.sleep(0.1)
    return (run_dir / "logs" / "pipeline.log").stat().st_size


def begun_at(run_dir: Path, step: str, offset: int) -> int:
    """The first unit that ``step`` reported in the log after ``offset`` bytes."""
    text = (run_dir / "logs" / "pipeline.log").read_bytes()[offset:].decode()
    match = re.search(rf"^\s*{step} (\d+)/", text, re.MULTILINE)
    assert match, f"{step} reported nothing after the kill"
    return int(match[1])


def weights(run_dir: Path, steps: tuple[str, ...]) -> dict[str, str]:
    """Digest of each step's final weights, read from the manifests in the run's store."""
    with Services.start(run_dir) as services:
        store = ObjectStore.from_env(services.environment)
        found = {step: newest(store, f"smoke/{step}") for step in steps}
    return {
        step: next(file.sha256 for file in manifest.files if file.name == "model.safetensors")
        for step, manifest in found.items()
        if manifest is not None and manifest.complete
    }


def test_killed_in_pretraining_and_in_rl_it_goes_on_to_the_same_weights(
    smoke_run: tuple[Path, str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    # Each is killed beyond its first durable checkpoint: joint_pretrain saves every 6 steps, joint_rl every round. A
    # second save waits for the first and begins after its round is reported: at the third report the first is durable.
    offsets = {"joint_pretrain": kill_in(run_dir, "joint_pretrain", 14), "joint_rl": kill_in(run_dir, "joint_rl", 3)}
    complete(run_dir)
    assert begun_at(run_dir, "joint_pretrain", offsets["joint_pretrain"]) >= 7
    assert begun_at(run_dir, "joint_rl", offsets["joint_rl"]) >= 2
    steps = ("vit_pretrain", "joint_pretrain", "mid_train", "zero_vision_sft", "joint_rl", "parl")
    assert weights(run_dir, steps) == weights(smoke_run[0], steps)
