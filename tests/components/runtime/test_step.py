from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.runtime.checkpoints.manifest import Manifest, fetch, read
from components.runtime.step import StepContext, read_metrics, run_step
from components.runtime.store.object_store import ObjectStore
from model.boundary.errors import MoonflowError, Transient
from pipelines.services import Services
from tests.counted import Config, Died, Stage, counting

pytestmark = pytest.mark.services


def untouchable(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    raise AssertionError("the stage ran again")


def test_step_writes_manifest_metrics_and_mlflow_run(
    step_environment: str, services: Services, store: ObjectStore, define: Callable[[Stage], None], tmp_path: Path
) -> None:
    define(counting())
    made = run_step("counted", {"steps": 4, "rate": 0.5})
    assert made.complete and made.index == 1 and made.uri == store.uri(f"{step_environment}/counted/1")
    assert made.extra["tokens"] == 4000 and made.extra["tokens_per_s"] > 0 and made.extra["peak_rss_bytes"] > 1e7
    fetch(store, made.uri, tmp_path / "got")
    assert [(row["step"], row["loss/text"]) for row in read_metrics(tmp_path / "got")] == [
        (1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)
    ]  # fmt: skip
    progress = json.loads((tmp_path / "progress" / "counted.json").read_text())
    assert (progress["done"], progress["total"], progress["figures"]) == (4, 4, {"loss": 0.25})

    client = MlflowClient(services.environment["MLFLOW_TRACKING_URI"])
    run = client.get_run(made.mlflow_run_id)
    assert run.info.status == "FINISHED" and run.data.params == {"steps": "4", "rate": "0.5"}
    assert run.data.tags["moonflow.manifest.sha256"] == made.sha256
    history = sorted(client.get_metric_history(made.mlflow_run_id, "loss/text"), key=lambda point: point.step)
    assert [point.value for point in history] == [1.0, 0.5, 1 / 3, 0.25]
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.data.tags["moonflow.step"] == "pipeline" and parent.data.tags["moonflow.run_id"] == step_environment

    define(untouchable)
    assert run_step("counted", {"steps": 4, "rate": 0.5}) == made


def test_killed_step_goes_on_and_keeps_its_history(
    step_environment: str, store: ObjectStore, define: Callable[[Stage], None], tmp_path: Path
) -> None:
    define(counting(dies_at=5))
    with pytest.raises(Died):
        run_step("counted", {"steps": 6})
    define(counting())
    made = run_step("counted", {"steps": 6})
    assert made.index == 2 and made.training_state == ("loop",)
    fetch(store, made.uri, tmp_path / "got")
    assert [row["step"] for row in read_metrics(tmp_path / "got")] == [1, 2, 3, 4, 5, 6]
    before = Manifest.model_validate_json(store.get(f"{step_environment}/counted/1/manifest.json"))
    assert made.extra["seconds"] > before.extra["seconds"] and made.mlflow_run_id == before.mlflow_run_id


def test_a_step_with_a_damaged_checkpoint_goes_on_from_the_one_before_and_says_so(
    step_environment: str,
    store: ObjectStore,
    define: Callable[[Stage], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    define(counting(dies_at=5))
    with pytest.raises(Died):
        run_step("counted", {"steps": 6})
    damaged = f"{step_environment}/counted/1"
    places = {file.name: file.path for file in read(store, damaged).files}
    state = f"{damaged}/{places['training_state.json']}"
    store.put(state, b"{")
    capsys.readouterr()
    define(counting())
    made = run_step("counted", {"steps": 6})
    told = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line or "truncated" in line]
    warning = f"{store.uri(state)} is truncated: expected 11 bytes, got 1: went on from the checkpoint before it"
    assert told == [f"counted: {warning}"] and made.extra["warnings"] == [warning]
    assert made.complete and made.index == 2
    fetch(store, made.uri, tmp_path / "got")
    assert [row["step"] for row in read_metrics(tmp_path / "got")] == [1, 2, 3, 4, 5, 6]
    assert fetch(store, store.uri(damaged), tmp_path / "replaced").index == 1


@pytest.mark.parametrize("dies_at", [None, 3], ids=["finished", "unfinished"])
def test_other_parameters_under_a_used_run_id_are_refused(
    step_environment: str, define: Callable[[Stage], None], dies_at: int | None
) -> None:
    define(counting(dies_at))
    if dies_at is None:
        run_step("counted", {"steps": 4})
    else:
        with pytest.raises(Died):
            run_step("counted", {"steps": 4})
    define(untouchable)
    with pytest.raises(MoonflowError, match=r"other parameters \(rate 0.1 -> 0.2\): restore them or use a new run id"):
        run_step("counted", {"steps": 4, "rate": 0.2})


def test_inputs_become_parents_and_other_inputs_are_refused(
    step_environment: str, store: ObjectStore, define: Callable[[Stage], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    define(counting())
    first = run_step("counted", {"steps": 2})
    monkeypatch.setenv("MOONFLOW_RUN_ID", f"{step_environment}-child")
    child = run_step("counted", {"steps": 2}, {"parent": first.uri, "data": ""})
    assert child.parents == (first.sha256,) and child.extra["inputs"] == {"parent": first.uri}
    with pytest.raises(MoonflowError, match="inputs .* -> .*use a new run id"):
        run_step("counted", {"steps": 2}, {"parent": child.uri})
    with pytest.raises(MoonflowError, match="/absent/0 has no manifest.json: its step never finished"):
        run_step("counted", {"steps": 2}, {"parent": store.uri(f"{step_environment}/absent/0")})


def test_publish_and_fetch_through_the_context(step_environment: str, define: Callable[[Stage], None]) -> None:
    def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
        folder = context.work / "out"
        folder.mkdir()
        (folder / "index.json").write_text("{}")
        made = context.publish(folder, kind="data", extra={"samples": 3})
        local = context.fetch(made.uri)
        assert (local / "index.json").read_text() == "{}" and context.fetch(made.uri) == local
        return made

    define(run)
    made = run_step("counted", {})
    assert made.kind == "data" and made.extra["samples"] == 3 and made.extra["seconds"] > 0


def test_bad_input_is_one_line(
    step_environment: str, define: Callable[[Stage], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    define(untouchable)
    with pytest.raises(MoonflowError, match="step counted: unknown parameter 'step'; did you mean 'steps'"):
        run_step("counted", {"step": 4})
    with pytest.raises(MoonflowError, match="step counted: parameter 'steps': .*got 'many'"):
        run_step("counted", {"steps": "many"})
    with pytest.raises(MoonflowError, match="no step 'uncounted'"):
        run_step("uncounted", {})
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(MoonflowError, match="127.0.0.1:9 cannot be reached .*moonflow doctor"):
        run_step("counted", {})
    monkeypatch.delenv("MOONFLOW_RUN_ID")
    with pytest.raises(MoonflowError, match="MOONFLOW_RUN_ID"):
        run_step("counted", {})


def test_mlflow_away_costs_no_training_and_is_made_good(
    step_environment: str,
    services: Services,
    define: Callable[[Stage], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    define(counting())
    made = run_step("counted", {"steps": 2})
    assert made.complete and made.mlflow_run_id == ""
    (spool,) = (tmp_path / "work" / "tracking" / step_environment).glob("*.jsonl")
    spool.rename(spool.with_name("earlier.jsonl"))  # as if another step of this run had left it

    monkeypatch.setenv("MLFLOW_TRACKING_URI", services.environment["MLFLOW_TRACKING_URI"])
    monkeypatch.setenv("MOONFLOW_RUN_DIR", str(tmp_path))
    from components.runtime.tracking.tracker import Tracker

    tracker = Tracker(spool.parent, step_environment, "following")
    tracker.start()
    tracker.close("FINISHED")
    assert list(spool.parent.iterdir()) == []
    client = MlflowClient(services.environment["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("moonflow")
    (run,) = client.search_runs(
        [experiment.experiment_id],
        f"tags.`moonflow.run_id` = '{step_environment}' and tags.`moonflow.step` = 'counted'",
    )
    assert run.info.status == "FINISHED" and run.data.metrics == {"loss/text": 0.5}


def test_run_injected_by_kubeflow_is_adopted(
    step_environment: str, services: Services, define: Callable[[Stage], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(services.environment["MLFLOW_TRACKING_URI"])
    injected = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", injected)
    define(counting())
    assert run_step("counted", {"steps": 2}).mlflow_run_id == injected
    run = client.get_run(injected)
    assert run.data.tags["moonflow.step"] == "counted" and run.data.metrics == {"loss/text": 0.5}


def test_an_attempt_that_is_to_be_repeated_does_not_wait_for_mlflow_too(
    define: Callable[[Stage], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A node that is lost may have had both; the next attempt sends what this one did not."""

    def away(*_: object) -> Manifest:
        raise Transient("the store is away")

    define(away)
    for name, value in {
        "MOONFLOW_RUN_ID": "r", "MOONFLOW_STORE": f"file://{tmp_path}/store", "MOONFLOW_MLFLOW_WAIT_S": "30",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for name in ("MOONFLOW_RUN_DIR", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    begun = time.monotonic()
    with pytest.raises(Transient):
        run_step("counted", {})
    assert time.monotonic() - begun < 25 and "waiting up to" not in capsys.readouterr().err


def test_a_small_file_of_a_step_is_among_the_artifacts_of_its_mlflow_run(
    step_environment: str, services: Services, define: Callable[[Stage], None], tmp_path: Path
) -> None:
    def stage(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
        context.log_file("swarm/one.json", '{"a": "é"}')
        return context.publish(context.work, kind="evals")

    define(stage)
    made = run_step("counted", {"steps": 1, "rate": 0.5})
    client = MlflowClient(services.environment["MLFLOW_TRACKING_URI"])
    there = client.download_artifacts(made.mlflow_run_id, "swarm/one.json", str(tmp_path))
    assert Path(there).read_text() == '{"a": "é"}'
