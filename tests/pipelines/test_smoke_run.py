from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from components.steps import STEPS, TRAINING_STEPS
from model.data.sample import ABILITIES, MODALITIES
from tests.pipelines.conftest import complete, processes, start

pytestmark = [pytest.mark.services, pytest.mark.slow]


def test_summary_has_its_schema(smoke_run: tuple[Path, str]) -> None:
    run_dir, _ = smoke_run
    summary = json.loads((run_dir / "summary.json").read_text())
    assert set(summary) == {"seconds", "steps", "evals", "promoted", "versions"}
    assert [step["name"] for step in summary["steps"]] == list(STEPS[:-1])
    for step in summary["steps"]:
        assert set(step) == {"name", "seconds", "tokens_per_s"}
        assert step["seconds"] > 0
        assert step["tokens_per_s"] > 0 or step["name"] not in (*TRAINING_STEPS, "evaluate")
    assert summary["seconds"] >= sum(step["seconds"] for step in summary["steps"]) - 1
    assert {row["step"] for row in summary["evals"]} == {"init", *TRAINING_STEPS}
    for row in summary["evals"]:
        assert set(row) == {"step", "suite", "ability", "modality", "value", "stderr", "n"}
        assert row["ability"] in ABILITIES and row["modality"] in MODALITIES
        assert 0 <= row["value"] <= 1 and row["stderr"] >= 0 and row["n"] >= 1
    assert set(summary["promoted"]) == {"version", "manifest_sha256", "commit"}
    assert summary["versions"]["torch"].startswith("2.13.0")


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


def test_nothing_is_left_running(smoke_run: tuple[Path, str]) -> None:
    assert processes(smoke_run[0]) == []


def test_second_call_redoes_nothing(smoke_run: tuple[Path, str]) -> None:
    run_dir, first = smoke_run
    before = json.loads((run_dir / "summary.json").read_text())
    out = complete(run_dir)
    for step in STEPS[:-1]:
        assert re.search(rf"^{step}: kept", out, re.MULTILINE), f"{step} was done again"
    after = json.loads((run_dir / "summary.json").read_text())
    for key in ("steps", "evals", "promoted"):
        assert after[key] == before[key]


def test_other_parameters_under_the_same_run_are_refused(smoke_run: tuple[Path, str]) -> None:
    process = start(smoke_run[0], "--set", "mid_train.steps=4")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert len(err.splitlines()) == 1 and "mid_train" in err and "steps 3 -> 4" in err
    complete(smoke_run[0])  # and nothing saved before is lost


def test_terminate_leaves_nothing_running(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start(run_dir)
    deadline = time.time() + 120
    while not (run_dir / "tasks" / "prepare_data.json").exists():
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert processes(run_dir) == []
