from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from components.runtime.checkpoints.manifest import Manifest
from components.runtime.kfp.entry import close, enter, task
from components.runtime.steps import config_class
from components.runtime.store.folder_store import FolderStore
from model.boundary.errors import MoonflowError, Transient
from tests.components.ablation.fusion.test_fusion_comparison import result as fusion_result
from tests.published import manifest_of, publish_output


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOONFLOW_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("MOONFLOW_RUN_ID", "old")
    return tmp_path


def state(run_dir: Path) -> dict[str, object]:
    return json.loads((run_dir / "tasks" / "parl.json").read_text())


def test_a_task_is_running_then_done(run_dir: Path) -> None:
    with task("parl", ""):
        assert state(run_dir)["state"] == "running"
    assert state(run_dir)["state"] == "done"


def test_a_moonflow_error_becomes_its_line_and_status_1(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, task("parl", ""):
        raise MoonflowError("the store is away; start it")
    assert caught.value.code == 1
    assert capsys.readouterr().err == "parl: the store is away; start it\n"
    assert (state(run_dir)["state"], state(run_dir)["error"]) == ("failed", "the store is away; start it")


def test_a_bug_keeps_its_traceback(run_dir: Path) -> None:
    with pytest.raises(ZeroDivisionError), task("parl", ""):
        _ = 1 / 0
    assert state(run_dir)["state"] == "failed" and "error" not in state(run_dir)


def test_a_second_attempt_forgets_the_first_ones_error(run_dir: Path) -> None:
    with pytest.raises(SystemExit), task("parl", ""):
        raise MoonflowError("once")
    with task("parl", ""):
        pass
    assert "error" not in state(run_dir)


def test_the_run_id_given_by_the_pipeline_wins(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with task("parl", "new"):
        assert os.environ["MOONFLOW_RUN_ID"] == "new"
    with task("parl", ""):
        assert os.environ["MOONFLOW_RUN_ID"] == "new"


def test_a_full_disk_does_not_hide_the_error(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run_dir / "tasks").write_text("a file where the folder should be")
    with pytest.raises(SystemExit), task("parl", ""):
        raise MoonflowError("the disk is full; make room")


def test_the_placement_of_the_task_decides_where_its_step_runs(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MOONFLOW_PLACEMENT", '{"launcher": "ranks", "processes": 2}')
    arguments = {"run_id": "r", **config_class("evaluate")().model_dump()}
    with pytest.raises(SystemExit):
        enter("evaluate", arguments, inputs={}, output=dsl.Model(), metrics=dsl.Metrics(), card=dsl.Markdown())
    assert capsys.readouterr().err.startswith("evaluate: evaluate cannot run as 2 ranks")


def test_the_card_tells_how_long_the_job_queued_also_if_the_store_is_away_afterwards(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second attempt finds the step finished and sees no job."""
    calls = []

    def launched(*arguments: Any) -> Manifest:
        calls.append(1)
        if len(calls) == 1:
            arguments[-1](192.0)
            raise Transient("the store is away; start it")
        return manifest_of("parl")

    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.delenv("MOONFLOW_RUN_DIR")  # in a run's pod: only there is a step repeated
    monkeypatch.setattr("components.runtime.launcher.launch.launch", launched)
    monkeypatch.setattr("time.sleep", lambda _: None)
    arguments = {"run_id": "r", **config_class("parl")().model_dump()}
    output, card = dsl.Model(uri=str(run_dir / "output")), dsl.Markdown(uri=str(run_dir / "card"))
    enter("parl", arguments, inputs={}, output=output, metrics=dsl.Metrics(), card=card)
    assert len(calls) == 2 and "| queued | 3 min 12 s |" in (run_dir / "card").read_text()


def test_a_task_in_a_pod_repeats_its_step_while_a_service_is_away(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def away(*_: object) -> None:
        calls.append(1)
        raise Transient("the store is away; start it") if len(calls) < 3 else MoonflowError("a wrong parameter")

    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.delenv("MOONFLOW_RUN_DIR")
    monkeypatch.setattr("components.runtime.launcher.launch.launch", away)
    monkeypatch.setattr("time.sleep", lambda _: None)
    arguments = {"run_id": "r", **config_class("parl")().model_dump()}
    with pytest.raises(SystemExit):
        enter("parl", arguments, inputs={}, output=dsl.Model(), metrics=dsl.Metrics(), card=dsl.Markdown())
    said = capsys.readouterr().err
    assert len(calls) == 3 and said.count("the store is away") == 2 and said.endswith("parl: a wrong parameter\n")


@pytest.mark.parametrize(
    ("given", "seeds", "error"),
    [
        ({}, [0, 1], "fusion_arm-late-0: out of memory"),
        ({"tasks": ""}, [0, 1], "fusion_arm-late-0: out of memory"),
        ({"tasks": "fusion_arm-early-1,fusion_arm-late-1,finish"}, [1], ""),
    ],
)
def test_the_end_of_a_run_is_about_the_tasks_that_the_pipeline_names(
    given: dict[str, str], seeds: list[int], error: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOONFLOW_STORE", f"file://{run_dir}/store")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (run_dir / "output").mkdir()
    (run_dir / "output" / "results.json").write_text("{}")
    for seed in (0, 1):
        extra = {"ablation": {**fusion_result("early", seed), "name": "fusion"}}
        store = FolderStore(f"file://{run_dir}/store")
        publish_output(store, run_dir / "output", "r", f"fusion_arm-early-{seed}", kind="evals", extra=extra)
    with pytest.raises(SystemExit), task("fusion_arm-late-0", "r"):
        raise MoonflowError("out of memory")
    report, card = dsl.HTML(uri=str(run_dir / "report")), dsl.Markdown(uri=str(run_dir / "card"))
    close({"run_id": "r", "curve_points": 9, **given}, error="", report=report, card=card)
    found = json.loads((run_dir / "summary.json").read_text())["ablation"]
    assert found["arms"]["early"]["seeds"] == seeds
    assert found["no_result"] == (["late-1"] if given.get("tasks") else [])
    assert json.loads((run_dir / "events.json").read_text())["extra"]["error"] == error
