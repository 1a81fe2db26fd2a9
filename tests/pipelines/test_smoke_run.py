from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from components.runtime.checkpoints.step_checkpoints import newest
from components.runtime.steps import STEPS, TRAINING_STEPS
from components.runtime.store.open_store import open_store
from model.data.samples.sample import ABILITIES, MODALITIES
from pipelines.progress import task_state
from pipelines.services import Services
from tests.pipelines.commands import complete, processes, start
from tests.waiting import happens

pytestmark = pytest.mark.services


def test_summary_has_its_schema(smoke_run: tuple[Path, str]) -> None:
    run_dir, _ = smoke_run
    summary = json.loads((run_dir / "summary.json").read_text())
    assert set(summary) == {"seconds", "steps", "evals", "promoted", "versions"}
    assert [step["name"] for step in summary["steps"]] == list(STEPS[:-1])
    for step in summary["steps"]:
        assert set(step) == {"name", "seconds", "tokens_per_s"}
        assert step["seconds"] > 0
        # After so short a pre-training, visual_rl may have no success that rejection_sft could train on.
        assert step["tokens_per_s"] > 0 or step["name"] not in {*TRAINING_STEPS, "evaluate"} - {"rejection_sft"}
    assert summary["seconds"] >= sum(step["seconds"] for step in summary["steps"]) - 1
    assert {row["step"] for row in summary["evals"]} == {"init", *TRAINING_STEPS}
    for row in summary["evals"]:
        assert set(row) == {"step", "suite", "ability", "modality", "value", "stderr", "n"}
        assert row["ability"] in ABILITIES and row["modality"] in MODALITIES
        assert 0 <= row["value"] <= 1 and row["stderr"] >= 0 and row["n"] >= 1
    assert set(summary["promoted"]) == {"version", "manifest_sha256", "commit"}
    assert summary["versions"]["torch"].startswith("2.13.0")


@pytest.mark.slow
def test_the_command_gives_the_scores_of_the_evaluate_step(smoke_run: tuple[Path, str]) -> None:
    run_dir, _ = smoke_run
    summary = json.loads((run_dir / "summary.json").read_text())
    command = [sys.executable, "-m", "pipelines.cli", "evaluate", str(run_dir), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["checkpoint"].startswith("step parl of run smoke")
    assert {row["suite"]: (row["score"], row["n"]) for row in found["suites"]} == {
        row["suite"]: (row["value"], row["n"]) for row in summary["evals"] if row["step"] == "parl"
    }


def test_promotion_is_a_commit_with_the_digest(smoke_run: tuple[Path, str]) -> None:
    run_dir, _ = smoke_run
    promoted = json.loads((run_dir / "summary.json").read_text())["promoted"]
    shown = subprocess.run(
        ["git", "-C", str(run_dir / "gitops.git"), "show", promoted["commit"]],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"+  - CHECKPOINT_SHA256={promoted['manifest_sha256']}" in re.sub(r"\+ +- ", "+  - ", shown.stdout)


def test_the_end_is_printed(smoke_run: tuple[Path, str]) -> None:
    run_dir, out = smoke_run
    for text in (
        "held-out score by step",
        "promoted   version",
        "GitOps     commit",
        "served",
        "MLflow     http://127.0.0.1",
    ):
        assert text in out
    assert str(run_dir / "report.html") in out
    page = (run_dir / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert not re.search(r'(src|href)="https?://', page), "the report must not load anything"


def test_every_step_shows_a_card_that_leads_to_its_own_mlflow_run(smoke_run: tuple[Path, str]) -> None:
    run_dir, _ = smoke_run
    with closing(sqlite3.connect(run_dir / "mlflow.db")) as database:
        tags = "select run_uuid, value from tags where key = 'moonflow.step'"
        steps = dict(database.execute(tags).fetchall())
    for step in STEPS:
        card = sorted((run_dir / "kfp").glob(f"*/{step.replace('_', '-')}/card"))[-1]
        link = re.search(r"\]\(http://127\.0\.0\.1:\d+/#/runs/([0-9a-f]+)\)", card.read_text())
        assert link and steps[link[1]] == (step if step != "finish" else "pipeline")


def test_no_task_changes_where_kubeflow_keeps_its_outputs(smoke_run: tuple[Path, str]) -> None:
    """A cluster's launcher fails a task whose output lies outside of the run's root."""
    run_dir, _ = smoke_run
    for step in STEPS:
        described = sorted((run_dir / "kfp").glob(f"*/{step.replace('_', '-')}/executor_output.json"))[-1]
        for name, held in json.loads(described.read_text())["artifacts"].items():
            for artifact in held["artifacts"]:
                assert artifact["uri"] == str(described.parent / name), f"{step}.{name}"
                if digest := artifact["metadata"].get("manifest_sha256"):
                    assert hashlib.sha256(Path(artifact["uri"]).read_bytes()).hexdigest() == digest
                    assert artifact["metadata"]["manifest_uri"].startswith(f"s3://moonflow/runs/smoke/{step}/")


def test_nothing_is_left_running(smoke_run: tuple[Path, str]) -> None:
    assert processes(smoke_run[0]) == []


@pytest.mark.slow
def test_second_call_redoes_nothing(smoke_run: tuple[Path, str]) -> None:
    run_dir, first = smoke_run
    before = json.loads((run_dir / "summary.json").read_text())
    out = complete(run_dir)
    for step in STEPS[:-1]:
        assert re.search(rf"^{step}: kept", out, re.MULTILINE), f"{step} was done again"
    after = json.loads((run_dir / "summary.json").read_text())
    for key in ("steps", "evals", "promoted"):
        assert after[key] == before[key]


@pytest.mark.slow
def test_corrected_rules_decide_again_and_nothing_is_trained_or_evaluated_again(smoke_run: tuple[Path, str]) -> None:
    run_dir, _ = smoke_run
    before = json.loads((run_dir / "summary.json").read_text())
    out = complete(run_dir, "--set", "evaluate.floors=digit_string=1", "--set", "joint_pretrain.keep_last=5")
    for step in ("prepare_data", *TRAINING_STEPS):
        assert re.search(rf"^{step}: kept", out, re.MULTILINE), f"{step} was done again"
    assert "evaluate: done" in out and "promoted   nothing: digit_string" in out and "still promoted" in out
    held = json.loads((run_dir / "summary.json").read_text())
    assert held["promoted"] is None and held["evals"] == before["evals"]

    out = complete(run_dir)
    assert "promote: done" in out and "serve: done" in out
    assert json.loads((run_dir / "summary.json").read_text())["promoted"] == before["promoted"]


@pytest.mark.slow
def test_other_parameters_under_the_same_run_are_refused(smoke_run: tuple[Path, str]) -> None:
    process = start(smoke_run[0], "--set", "mid_train.steps=4")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert len(err.splitlines()) == 1 and "mid_train" in err and "steps 3 -> 4" in err
    complete(smoke_run[0])  # and nothing saved before is lost


def test_the_mlflow_address_is_the_table_of_runs(smoke_run: tuple[Path, str]) -> None:
    assert re.search(r"^MLflow     http://127.0.0.1:\d+/#/experiments/\d+/runs\?\S+", smoke_run[1], re.MULTILINE)


def test_every_mlflow_run_is_finished(smoke_run: tuple[Path, str]) -> None:
    with closing(sqlite3.connect(smoke_run[0] / "mlflow.db")) as database:
        runs = dict(database.execute("select name, status from runs where lifecycle_stage = 'active'"))
    assert runs == dict.fromkeys(("smoke", *STEPS[:-1]), "FINISHED")


def test_time_and_memory_are_printed_and_the_memory_is_bounded(smoke_run: tuple[Path, str]) -> None:
    _, out = smoke_run
    for row in (*STEPS, "services up", "between steps"):
        assert re.search(rf"^\s*{row} .*\d\.\d s", out, re.MULTILINE), row
    match = re.search(r"peak memory (\d+\.\d) GiB", out)
    assert match and 0.5 < float(match[1]) < 6


STOPPED = "moonflow: stopped; the same command continues from here\n"
SMALL = ("--set", "prepare_data.text_samples=200", "--set", "prepare_data.image_samples=100")


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """The runs of one test, none of which outlives it."""
    runs: list[subprocess.Popen[str]] = []
    yield runs
    for process in runs:
        process.kill()


def until_running(run_dir: Path, step: str, started: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """A run that has got to ``step``."""
    (run_dir / "tasks" / f"{step}.json").unlink(missing_ok=True)  # a killed step of an earlier run still says so
    process = start(run_dir, *SMALL)
    started.append(process)
    assert happens(lambda: process.poll() is not None or task_state(run_dir, step).state == "running", 400), step
    assert process.poll() is None, process.communicate()[1]
    return process


@pytest.mark.slow
def test_ctrl_c_and_terminate_end_everything_and_the_next_call_goes_on(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    run_dir = tmp_path / "run"
    process = until_running(run_dir, "prepare_data", started)
    for _ in range(2):  # an impatient user; a terminal sends it to the whole foreground group
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, STOPPED)
    gone(run_dir)

    process = until_running(run_dir, "vit_pretrain", started)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + signal.SIGTERM, STOPPED)
    gone(run_dir)

    process = until_running(run_dir, "vit_pretrain", started)
    assert task_state(run_dir, "prepare_data").state == "kept"
    os.kill(task_process(run_dir, "vit_pretrain"), signal.SIGKILL)  # as a node does that runs out of memory
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert err == (
        "moonflow: vit_pretrain stopped without a message: it was killed or hit a bug; see the end of "
        f"{run_dir / 'logs' / 'pipeline.log'}\n"
    )
    gone(run_dir)


def task_process(run_dir: Path, step: str) -> int:
    """The process in which kfp.local runs ``step``."""
    lines = {process.pid: process.info["cmdline"] or [""] for process in psutil.process_iter(["cmdline"])}
    wanted = ("kfp.dsl.executor_main", str(run_dir), step)
    (found,) = (
        pid
        for pid, line in lines.items()
        if Path(line[0]).name.startswith("python") and all(part in " ".join(line) for part in wanted)
    )
    return found


def gone(run_dir: Path) -> None:
    """After a second Ctrl-C or a kill nobody waits for steps and services, but they notice and end by themselves."""
    assert happens(lambda: not processes(run_dir), 20), processes(run_dir)


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
    process.communicate()
    gone(run_dir)
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
        store = open_store(services.environment)
        found = {step: newest(store, f"smoke/{step}") for step in steps}
    return {
        step: next(file.sha256 for file in manifest.files if file.name == "model.safetensors")
        for step, manifest in found.items()
        if manifest is not None and manifest.complete
    }


@pytest.mark.slow
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
    assert weights(run_dir, TRAINING_STEPS) == weights(smoke_run[0], TRAINING_STEPS)
