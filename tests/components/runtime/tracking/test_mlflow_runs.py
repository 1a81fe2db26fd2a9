"""The parent run of a pipeline, on a real MLflow store in sqlite without a server."""

from __future__ import annotations

import time
from pathlib import Path

import mlflow
import pytest
from mlflow.environment_variables import MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT

from components.runtime.tracking.mlflow_runs import Dataset, Outcome, end_pipeline_run, group_pipelines, of_step
from components.runtime.tracking.tracker import Tracker
from pipelines.result import mlflow_page

DIGEST = "ab" * 32


@pytest.fixture
def client(own_mlflow: str) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(own_mlflow)


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
    parent = end_pipeline_run("r", "FINISHED", outcome())
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
    parent = end_pipeline_run("r", "FINISHED", outcome())
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
    parent = end_pipeline_run("r", "FINISHED", outcome())
    before = client.get_run(parent)
    time.sleep(0.01)
    assert end_pipeline_run("r", "FINISHED", outcome()) == parent
    after = client.get_run(parent)
    assert after.info.end_time == before.info.end_time
    assert after.to_dictionary() == before.to_dictionary()
    assert len(client.get_metric_history(parent, "seconds")) == 1


def test_a_failed_run_ends_now_and_its_successful_repetition_with_its_last_step(client: mlflow.MlflowClient) -> None:
    began = time.time()
    parent = end_pipeline_run("r", "FAILED", outcome(ended=None, metrics={}, tags={"moonflow.error": "parl: away"}))
    failed = client.get_run(parent)
    assert failed.info.status == "FAILED" and failed.info.end_time >= int(began * 1000)
    end_pipeline_run("r", "FINISHED", outcome(ended=began + 60))
    assert client.get_run(parent).info.end_time == int((began + 60) * 1000)


def test_a_parameter_that_a_later_call_changed_is_told_by_a_tag(client: mlflow.MlflowClient) -> None:
    end_pipeline_run("r", "FAILED", outcome(params={"evaluate.floors": "photo=9"}))
    parent = end_pipeline_run("r", "FINISHED", outcome(params={"evaluate.floors": "photo=0.9", "preset": "tiny"}))
    data = client.get_run(parent).data
    assert data.params == {"evaluate.floors": "photo=9", "preset": "tiny"}
    assert data.tags["evaluate.floors"] == "photo=0.9"
    end_pipeline_run("r", "FINISHED", outcome(params={"evaluate.floors": "photo=9"}))
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


def test_a_later_step_sends_what_an_earlier_one_could_not(client: mlflow.MlflowClient, tmp_path: Path) -> None:
    earlier = Tracker(tmp_path / "spool", "r", "joint_rl")
    for step in range(3):
        earlier.metrics({"reward/mean": step / 2}, step, 1_700_000_000.0 + step)
    earlier.close("FAILED")  # before a thread has sent anything
    later = Tracker(tmp_path / "spool", "r", "parl")
    later.start()
    later.close("FINISHED")
    assert list((tmp_path / "spool").iterdir()) == [], "all is sent"
    run = client.get_run(of_step(client, "r", "joint_rl", 0.0))
    sent = client.get_metric_history(run.info.run_id, "reward/mean")
    assert run.info.status == "FAILED"
    assert [(point.step, point.value) for point in sent] == [(0, 0.0), (1, 0.5), (2, 1.0)]


def test_more_parameters_than_one_request_takes(client: mlflow.MlflowClient) -> None:
    many = {f"step.p{number}": str(number) for number in range(250)}
    assert client.get_run(end_pipeline_run("r", "FINISHED", outcome(params=many))).data.params == many


def test_values_too_long_for_mlflow_are_shortened(client: mlflow.MlflowClient) -> None:
    long = outcome(params={"prepare_data.sources": "a=" + "x" * 7_000}, note="n" * 9_000)
    run = client.get_run(end_pipeline_run("r", "FINISHED", long))
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
    assert end_pipeline_run("r", "FINISHED", outcome()) == theirs
    run = client.get_run(theirs)
    assert run.data.metrics["seconds"] == 420.0 and run.info.status == "RUNNING"
    assert client.get_experiment_by_name("moonflow") is None, "no second parent"


def test_an_absent_mlflow_fails_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert end_pipeline_run("r", "FINISHED", outcome()) == ""
    assert "the pipeline's run was not closed in MLflow" in capsys.readouterr().err


def test_pipelines_of_a_group_lie_below_one_run_whenever_they_began(client: mlflow.MlflowClient) -> None:
    early = end_pipeline_run("t-seeds-1", "FINISHED", outcome())  # it began while MLflow was away for the group
    group = group_pipelines("seeds-t", ["t-seeds-2"], "RUNNING", Outcome({"runs/failed": 0.0}))
    assert client.get_run(group).info.status == "RUNNING"
    child = of_step(client, "t-seeds-2", "parl", 1_700_000_000.0)
    late = end_pipeline_run("t-seeds-2", "FINISHED", outcome())
    ended = Outcome({"runs/failed": 1.0, "eval/photo/knowledge/image/sd": 0.1}, note="| suite |")
    assert group_pipelines("seeds-t", ["t-seeds-1", "t-seeds-2"], "FINISHED", ended) == group

    parents = {run.info.run_id: run.data.tags.get("mlflow.parentRunId") for run in runs_of(client)}
    assert parents == {group: None, early: group, late: group, child: late}
    shown = client.get_run(group)
    assert (shown.info.run_name, shown.info.status) == ("seeds-t", "FINISHED")
    assert shown.data.metrics == {"runs/failed": 1.0, "eval/photo/knowledge/image/sd": 0.1}
    assert shown.data.tags["mlflow.note.content"] == "| suite |"
    assert client.get_run(late).data.metrics["eval/photo/knowledge/image"] == 0.5


def test_a_group_that_goes_on_runs_again_and_can_be_killed(client: mlflow.MlflowClient) -> None:
    group = group_pipelines("seeds-t", [], "FINISHED", Outcome())
    for status in ("RUNNING", "KILLED"):
        assert group_pipelines("seeds-t", [], status, Outcome()) == group
        assert client.get_run(group).info.status == status
    assert len(runs_of(client)) == 1


def test_a_group_without_mlflow_is_a_line_and_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert group_pipelines("seeds-t", ["t-seeds-1"], "RUNNING", Outcome()) == ""
    assert capsys.readouterr().err.startswith("the run seeds-t was not written to MLflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert group_pipelines("seeds-t", ["t-seeds-1"], "RUNNING", Outcome()) == ""


def runs_of(client: mlflow.MlflowClient) -> list[mlflow.entities.Run]:
    experiment = client.get_experiment_by_name("moonflow")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))
