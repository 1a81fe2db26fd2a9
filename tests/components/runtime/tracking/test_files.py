"""Files of a step reach MLflow as its figures do, and one that cannot be stored holds up nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.runtime.tracking.mlflow_runs import download_files
from components.runtime.tracking.tracker import Tracker
from model.boundary.errors import MoonflowError


@pytest.fixture
def client(own_mlflow: str, tmp_path: Path) -> MlflowClient:
    """Artifacts lie in the test's folder."""
    made = MlflowClient(own_mlflow)
    made.create_experiment("moonflow", artifact_location=f"file://{tmp_path}/artifacts")
    return made


def logged(folder: Path, step: str, *files: tuple[str, str]) -> str:
    tracker = Tracker(folder / "tracking", "run", step)
    for path, text in files:
        tracker.text(path, text)
    tracker.metrics({"loss": 1.0}, 1, 0.0)
    tracker.start()
    tracker.close("FINISHED")
    return tracker.mlflow_run_id


def test_files_are_stored_and_found_again_by_run_and_folder(client: MlflowClient, tmp_path: Path) -> None:
    logged(tmp_path, "parl", ("swarm/b.json", "{}"), ("swarm/a.json", '"é\\u0000"'), ("swarm/a.html", "<p>"))
    logged(tmp_path, "evaluate", ("swarm/c.json", "[]"), ("other/d.json", "[]"))
    found = download_files("run", "swarm", ".json", tmp_path / "fetched")
    assert [(step, path.name) for step, path in found] == [
        ("evaluate", "c.json"), ("parl", "a.json"), ("parl", "b.json"),
    ]  # fmt: skip
    assert found[1][1].read_text() == '"é\\u0000"'
    assert download_files("another", "swarm", ".json", tmp_path) == []


def test_a_file_that_cannot_be_stored_holds_up_nothing(
    client: MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "artifacts").write_text("a file where the folder should be")
    run = logged(tmp_path, "parl", ("swarm/a.json", "{}"))
    assert "MLflow did not store swarm/a.json" in capsys.readouterr().err
    found = client.get_run(run)
    assert found.info.status == "FINISHED" and found.data.metrics == {"loss": 1.0}


def test_an_mlflow_that_does_not_answer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(MoonflowError, match=r"MLflow at http://127\.0\.0\.1:9 does not give the files of run r"):
        download_files("r", "swarm", ".json", tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(MoonflowError, match="MLFLOW_TRACKING_URI is not set"):
        download_files("r", "swarm", ".json", tmp_path)
