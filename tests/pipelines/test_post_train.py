"""Post-training's DAG, and a whole run of it from another run's checkpoint, killed on its way."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from components.release.fetch import bring
from components.release.signing import PUBLIC_KEY
from components.runtime.checkpoints import manifest as manifests
from components.runtime.checkpoints.step_checkpoints import newest
from components.runtime.steps import IMPORTED, PIPELINES, STEPS
from components.runtime.store.open_store import open_store
from model.boundary.errors import MoonflowError
from pipelines.dag import pipeline_parameters
from pipelines.profile import load_profile
from pipelines.progress import task_state
from pipelines.services import Services
from pipelines.source_run import fetch_source, run_and_step
from tests.pipelines import shipped
from tests.pipelines.commands import complete, processes, start

STAGES = [IMPORTED, "zero_vision_sft", "visual_rl", "rejection_sft", "joint_rl", "parl"]
"""The checkpoints that are measured."""


@pytest.fixture(scope="module")
def tasks() -> dict[str, dict[str, Any]]:
    """The tasks of the compiled pipeline by name."""
    spec, _ = shipped.compiled("post_train")
    dags = [spec["root"]["dag"], *(each["dag"] for each in spec["components"].values() if "dag" in each)]
    return {name: task for dag in dags for name, task in dag["tasks"].items()}


def test_it_has_the_recipes_steps_after_pre_training() -> None:
    assert PIPELINES["post_train"] == (IMPORTED, STEPS[0], *STEPS[STEPS.index("zero_vision_sft") :])


def artifacts(task: dict[str, Any]) -> dict[str, str]:
    """Input -> the task that makes it."""
    return {
        name: given["taskOutputArtifact"]["producerTask"]
        for name, given in task["inputs"].get("artifacts", {}).items()
        if "taskOutputArtifact" in given
    }


def test_every_step_starts_from_the_checkpoint_and_its_data(tasks: dict[str, dict[str, Any]]) -> None:
    base = "import-checkpoint"
    assert artifacts(tasks[base]) == {}
    assert artifacts(tasks["prepare-data"]) == {"tokenizer": base}
    assert artifacts(tasks["zero-vision-sft"]) == {"data": "prepare-data", "parent": base}
    assert artifacts(tasks["visual-rl"]) == {"data": "prepare-data", "parent": "zero-vision-sft"}
    lessons = {"data": "prepare-data", "parent": "visual-rl", "successes": "visual-rl"}
    assert artifacts(tasks["rejection-sft"]) == lessons
    assert artifacts(tasks["joint-rl"]) == {"data": "prepare-data", "parent": "rejection-sft"}
    assert artifacts(tasks["parl"]) == {"data": "prepare-data", "policy": "joint-rl", "sub_agents": "zero-vision-sft"}
    evaluated = {step: step.replace("_", "-") for step in STAGES}
    assert artifacts(tasks["evaluate"]) == {"data": "prepare-data", **evaluated}


def test_the_first_step_checks_the_texts_of_all_and_nothing_asks_for_a_shape(tasks: dict[str, dict[str, Any]]) -> None:
    later = tasks["import-checkpoint"]["inputs"]["parameters"]["later"]["runtimeValue"]["constant"]
    assert "import_checkpoint.source={{" in later and "evaluate.floors={{" in later
    assert "later" not in tasks["prepare-data"]["inputs"]["parameters"]
    names = [parameter.name for parameter in pipeline_parameters(load_profile("post_train"))]
    assert "p01_import_checkpoint_source" in names and "p00_preset" not in names


def run_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "profile.toml").touch()
    (path / "arguments.json").write_text(json.dumps({"p00_run_id": "base"}))
    return path


def test_a_run_is_found_by_its_folder_and_by_a_step_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = run_folder(tmp_path / "runs" / "base")
    monkeypatch.chdir(tmp_path)
    assert run_and_step(Path("runs/base")) == (base, "")
    assert run_and_step(base / "mid_train") == (base, "mid_train")
    assert run_and_step(base / "mid_train" / "3") == (base, "mid_train/3")
    assert run_and_step(tmp_path) is None and run_and_step(base / "a" / "b" / "c") is None
    (base / "exported").mkdir()
    assert run_and_step(base / "exported") is None


def test_a_run_does_not_start_from_itself_and_an_address_is_left_to_the_step(tmp_path: Path) -> None:
    base = run_folder(tmp_path / "base")
    with pytest.raises(MoonflowError, match="this run's own folder"):
        fetch_source(load_profile("post_train", [f"import_checkpoint.source={base}"]), base, Console())
    for source in ("s3://bucket/runs/base", "hf://owner/name", str(tmp_path)):
        profile = load_profile("post_train", [f"import_checkpoint.source={source}"])
        assert fetch_source(profile, tmp_path / "run", Console()) == {}
    assert fetch_source(load_profile("tiny"), tmp_path / "run", Console()) == {}


@pytest.mark.slow
@pytest.mark.services
def test_from_a_runs_checkpoint_to_a_promoted_and_served_one(smoke_run: tuple[Path, str], tmp_path: Path) -> None:
    run_dir, base = tmp_path / "run", smoke_run[0]
    given = ("--profile", "post_train_smoke", "--set", f"import_checkpoint.source={base}/mid_train")
    process = start(run_dir, *given)
    deadline = time.monotonic() + 300
    while task_state(run_dir, "zero_vision_sft").state != "running":
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    while left := processes(run_dir):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)

    printed = complete(run_dir, *given)
    assert "import_checkpoint: kept" in printed and "prepare_data: kept" in printed
    assert "promoted   version" in printed and "served " in printed
    assert processes(run_dir) == []

    summary = json.loads((run_dir / "summary.json").read_text())
    assert [step["name"] for step in summary["steps"]] == list(PIPELINES["post_train"][:-1])
    stages = list(dict.fromkeys(row["step"] for row in summary["evals"]))
    assert stages == STAGES
    page = (run_dir / "report.html").read_text()
    assert f"{base}/mid_train" in page and re.search(r'<th scope="col">imported</th>', page)

    with Services.start(base) as services:
        source = newest(open_store(services.environment), "smoke/mid_train")
    with Services.start(run_dir) as services:
        store = open_store(services.environment)
        found = {step: newest(store, f"post-train-smoke/{step}") for step in PIPELINES["post_train"][:-1]}
        promoted = manifests.read(store, found["promote"].extra["uri"])
        bring(store, promoted.uri, promoted.sha256, tmp_path / "served", Path(services.environment[PUBLIC_KEY]))
    assert source is not None and found["import_checkpoint"].extra["origin"]["sha256"] == source.sha256
    assert found["prepare_data"].tokenizer_sha256 == source.tokenizer_sha256 == promoted.tokenizer_sha256
    assert promoted.extra["origin"] == found["import_checkpoint"].extra["origin"]
    assert {rule["rule"] for rule in found["evaluate"].extra["rules"]} == {"imported", "well_formed"}
