"""A real MLflow registry on sqlite, without a server."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from components.promote.registry import register
from model.errors import MoonflowError


@pytest.fixture
def registry(tmp_path: Path):
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(before)


def test_registers_once_and_moves_the_alias(registry: mlflow.MlflowClient):
    first = register("moonflow", "champion", "s3://b/run/parl/1", {"manifest_sha256": "a" * 64, "commit": "c1"})
    again = register("moonflow", "champion", "s3://b/run/parl/1", {"manifest_sha256": "a" * 64, "commit": "c1"})
    assert (first, again) == ("1", "1")
    second = register("moonflow", "champion", "s3://b/run2/parl/1", {"manifest_sha256": "b" * 64, "commit": "c2"})
    champion = registry.get_model_version_by_alias("moonflow", "champion")
    assert (second, str(champion.version), champion.source) == ("2", "2", "s3://b/run2/parl/1")
    assert champion.tags["commit"] == "c2"
    # A rollback: the earlier checkpoint again, no new version.
    assert register("moonflow", "champion", "s3://b/run/parl/1", {"manifest_sha256": "a" * 64, "commit": "c3"}) == "1"
    assert str(registry.get_model_version_by_alias("moonflow", "champion").version) == "1"
    assert len(registry.search_model_versions("name='moonflow'")) == 2


def test_a_refusal_is_one_line(registry: mlflow.MlflowClient):
    with pytest.raises(MoonflowError, match="registering moonflow") as caught:
        register("moonflow", "not an alias!", "s3://b/run/parl/1", {"manifest_sha256": "a" * 64})
    assert "\n" not in str(caught.value)
