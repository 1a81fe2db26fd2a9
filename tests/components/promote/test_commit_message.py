"""What a promotion's commit says, which people read in the forge."""

from __future__ import annotations

import pytest

from components.promote.config import Config
from components.promote.stage import commit_message
from components.release.overlay import Change
from components.runtime.checkpoints.manifest import Manifest
from tests.published import manifest_of

MADE = manifest_of("parl", 2)


def message(mlflow_run_id: str, made: Manifest = MADE, evals: Manifest = MADE) -> str:
    change = Change("s3://b/r/promote/export/1", "a" * 64, "kfp-1", mlflow_run_id)
    return commit_message(Config(), change, "3", made, evals)


def test_what_training_started_from_is_named_and_its_scores_stand_next_to_the_candidates() -> None:
    origin = {"source": "hf://owner/name", "revision": "c0ffee", "sha256": "b" * 64, "licences": ["LICENSE", "NOTICE"]}
    made = MADE.model_copy(update={"extra": {"origin": origin}})
    scores = (("import_checkpoint", 0.25), ("parl", 0.5))
    rows = [{"step": step, "suite": "photo", "value": value, "stderr": 0.125, "n": 16} for step, value in scores]
    text = message("", made, MADE.model_copy(update={"extra": {"evals": rows}}))
    assert f"Started from: hf://owner/name at c0ffee, sha256 {'b' * 64}, licence: LICENSE, NOTICE\n" in text
    assert [line.split() for line in text.splitlines()[-2:]] == [
        ["suite", "imported", "value", "stderr", "n"], ["photo", "0.250", "0.500", "0.125", "16"],
    ]  # fmt: skip
    assert "Started from" not in message("") and "untrained" in message("")


def test_what_others_wrote_of_the_start_stays_in_its_line() -> None:
    more = "x\nApproved-by: somebody\x1b[2J" + "y" * 400
    origin = {"source": more, "revision": more, "sha256": "b" * 64, "licences": [more]}
    (line,) = [line for line in message("", MADE.model_copy(update={"extra": {"origin": origin}})).splitlines()
               if "Approved" in line]  # fmt: skip
    assert line.startswith("Started from: x Approved-by") and "\x1b" not in line and len(line) < 1100


def test_the_mlflow_run_is_a_link_that_a_browser_can_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.moonflow:5000")
    monkeypatch.setenv("MLFLOW_PUBLIC_URI", "https://mlflow.example.org/")
    assert "MLflow run: https://mlflow.example.org/#/runs/abc123\n" in message("abc123")
    assert "mlflow.moonflow" not in message("abc123") and "MLflow run: none\n" in message("")
