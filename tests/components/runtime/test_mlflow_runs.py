"""The parent run of a pipeline, on a real MLflow store in sqlite without a server."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.environment_variables import MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT

from components.runtime.mlflow_runs import Dataset, Outcome, finish_pipeline, of_step
from components.runtime.tracking import Tracker
from pipelines.result import mlflow_page

DIGEST = "ab" * 32


@pytest.fixture
def client(empty_mlflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    address = f"sqlite:///{shutil.copy(empty_mlflow, tmp_path)}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    return mlflow.MlflowClient(address)


def outcome(**changes: object) -> Outcome:
    values = {
        "metrics": {"eval/photo/knowledge/image": 0.5, "seconds": 420.0, "tokens/s": 9000.0},
        "params": {"joint_pretrain.steps": "200", "preset": "tiny"},
        "tags": {"mlflow.source.git.commit": "c0ffee"},
        "dataset": Dataset("r/prepare_data", DIGEST, "s3://b/r/prepare_data/0"),
        "note": "**promote**",
        "ended": 1_700_000_420.0,
    }
    return Outcome(**{**values, **changes})  # type: ignore[arg-type]


def test_a_parent_shows_scores_parameters_speed_data_and_commit(client: mlflow.MlflowClient) -> None:
    child = of_step(client, "r", "parl", 1_700_000_000.0)
    parent = finish_pipeline("r", "FINISHED", outcome())
    run = client.get_run(parent)
    assert client.get_run(child).data.tags["mlflow.parentRunId"] == parent
    assert run.data.metrics == {"eval/photo/knowledge/image": 0.5, "seconds": 420.0, "tokens/s": 9000.0}
    assert run.data.params == {"joint_pretrain.steps": "200", "preset": "tiny"}
    assert run.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert run.data.tags["mlflow.note.content"] == "**promote**"
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("r/prepare_data", DIGEST[:36])
    assert "s3://b/r/prepare_data/0" in data.dataset.source
    assert (run.info.status, run.info.end_time) == ("FINISHED", 1_700_000_420_000)


def test_the_only_address_that_is_printed_is_the_one_for_browsers(
    client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_PUBLIC_URI", "https://mlflow.example.org")
    parent = finish_pipeline("r", "FINISHED", outcome())
    assert f"MLflow run of the pipeline: https://mlflow.example.org/#/runs/{parent}\n" in capfd.readouterr().out
    tracker = Tracker(tmp_path / "spool", "r", "parl")
    tracker.start()
    tracker.close("FINISHED")
    said = capfd.readouterr().out
    assert said == f"MLflow run: https://mlflow.example.org/#/runs/{tracker.mlflow_run_id}\n"
    assert MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.get(), "MLflow's own line names the server that the steps use"


def test_the_page_of_a_run_is_that_for_browsers() -> None:
    environment = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1", "MLFLOW_PUBLIC_URI": "https://mlflow.example.org/"}
    assert mlflow_page(environment) == "https://mlflow.example.org"


def test_finishing_again_changes_nothing(client: mlflow.MlflowClient) -> None:
    parent = finish_pipeline("r", "FINISHED", outcome())
    before = client.get_run(parent)
    time.sleep(0.01)
    assert finish_pipeline("r", "FINISHED", outcome()) == parent
    after = client.get_run(parent)
    assert after.info.end_time == before.info.end_time
    assert after.to_dictionary() == before.to_dictionary()
    assert len(client.get_metric_history(parent, "seconds")) == 1


def test_a_failed_run_ends_now_and_its_successful_repetition_with_its_last_step(client: mlflow.MlflowClient) -> None:
    began = time.time()
    parent = finish_pipeline("r", "FAILED", outcome(ended=None, metrics={}, tags={"moonflow.error": "parl: away"}))
    failed = client.get_run(parent)
    assert failed.info.status == "FAILED" and failed.info.end_time >= int(began * 1000)
    finish_pipeline("r", "FINISHED", outcome(ended=began + 60))
    assert client.get_run(parent).info.end_time == int((began + 60) * 1000)


def test_a_parameter_that_a_later_call_changed_is_told_by_a_tag(client: mlflow.MlflowClient) -> None:
    finish_pipeline("r", "FAILED", outcome(params={"evaluate.floors": "photo=9"}))
    parent = finish_pipeline("r", "FINISHED", outcome(params={"evaluate.floors": "photo=0.9", "preset": "tiny"}))
    data = client.get_run(parent).data
    assert data.params == {"evaluate.floors": "photo=9", "preset": "tiny"}
    assert data.tags["evaluate.floors"] == "photo=0.9"
    finish_pipeline("r", "FINISHED", outcome(params={"evaluate.floors": "photo=9"}))
    assert client.get_run(parent).data.tags["evaluate.floors"] == "photo=9", "the tag tells the newest value"


def test_a_step_that_runs_again_with_corrected_rules_tells_them_by_tags(
    client: mlflow.MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for floors in ("photo=9", "photo=0.9"):
        tracker = Tracker(tmp_path / "spool", "r", "evaluate")
        tracker.params({"floors": floors, "samples": 4})
        tracker.start()
        tracker.close("FINISHED")
    data = client.get_run(tracker.mlflow_run_id).data
    assert data.params == {"floors": "photo=9", "samples": "4"} and data.tags["floors"] == "photo=0.9"
    assert "refused" not in capsys.readouterr().err


def test_more_parameters_than_one_request_takes(client: mlflow.MlflowClient) -> None:
    many = {f"step.p{number}": str(number) for number in range(250)}
    assert client.get_run(finish_pipeline("r", "FINISHED", outcome(params=many))).data.params == many


def test_values_too_long_for_mlflow_are_shortened(client: mlflow.MlflowClient) -> None:
    long = outcome(params={"prepare_data.sources": "a=" + "x" * 7_000}, note="n" * 9_000)
    run = client.get_run(finish_pipeline("r", "FINISHED", long))
    assert run.info.status == "FINISHED"
    value, note = run.data.params["prepare_data.sources"], run.data.tags["mlflow.note.content"]
    assert (len(value), len(note)) == (6_000, 8_000) and value.endswith("...") and note.endswith("...")


def test_kfp_s_own_parent_run_gets_the_figures_and_its_end_is_left_to_kfp(
    client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = client.create_experiment("kubeflow")
    theirs = client.create_run(experiment).info.run_id
    task = client.create_run(experiment, tags={"mlflow.parentRunId": theirs}).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", task)
    assert finish_pipeline("r", "FINISHED", outcome()) == theirs
    run = client.get_run(theirs)
    assert run.data.metrics["seconds"] == 420.0 and run.info.status == "RUNNING"
    assert client.get_experiment_by_name("moonflow") is None, "no second parent"


def test_an_absent_mlflow_fails_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert finish_pipeline("r", "FINISHED", outcome()) == ""
    assert "the pipeline's run was not closed in MLflow" in capsys.readouterr().err
