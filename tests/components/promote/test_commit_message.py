"""What a promotion's commit says, which people read in the forge."""

from __future__ import annotations

import pytest

from components.promote.config import Config
from components.promote.overlay import Change
from components.promote.stage import commit_message
from components.runtime.manifest import Manifest

MADE = Manifest(uri="s3://b/r/parl/2", run_id="r", step="parl", index=2, kind="checkpoint", files=())


def message(mlflow_run_id: str) -> str:
    change = Change("s3://b/r/promote/export/1", "a" * 64, "kfp-1", mlflow_run_id)
    return commit_message(Config(), change, "3", MADE, MADE)


def test_the_mlflow_run_is_a_link_that_a_browser_can_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.moonflow:5000")
    monkeypatch.setenv("MLFLOW_PUBLIC_URI", "https://mlflow.example.org/")
    assert "MLflow run: https://mlflow.example.org/#/runs/abc123\n" in message("abc123")
    assert "mlflow.moonflow" not in message("abc123") and "MLflow run: none\n" in message("")
