"""A user's own buckets, read by a step whose store is another S3 server."""

from __future__ import annotations

import os
from pathlib import Path

import boto3
import pytest

from components.runtime.datasets.user_data import store_of
from components.runtime.store.open_store import for_sources
from model.boundary.errors import MoonflowError
from pipelines.services import Services

pytestmark = pytest.mark.services

OWN = {  # as `moonflow run` gives a step its own store; nobody answers there
    "MOONFLOW_STORE": "s3://moonflow/runs", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "AWS_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "own-key-id", "AWS_SECRET_ACCESS_KEY": "own-secret",
}  # fmt: skip
BUCKET, URI = "theirs", "s3://theirs/models/LICENSE"


@pytest.fixture
def theirs(services: Services, no_settings: None) -> dict[str, str]:
    """The AWS_* variables of a user who has a bucket with one file."""
    given = {name: value for name, value in services.environment.items() if name.startswith("AWS_")}
    client = boto3.client(
        "s3",
        endpoint_url=given["AWS_ENDPOINT_URL_S3"],
        region_name="us-east-1",
        aws_access_key_id=given["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=given["AWS_SECRET_ACCESS_KEY"],
    )
    if BUCKET not in [each["Name"] for each in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=BUCKET)
    client.put_object(Bucket=BUCKET, Key="models/LICENSE", Body=b"terms")
    return given


def in_a_step(caller: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**caller, **for_sources(caller), **OWN}.items():
        monkeypatch.setenv(name, value)


def test_a_bucket_of_the_callers_is_read_with_the_callers_settings(
    theirs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_a_step(theirs, monkeypatch)
    assert store_of(URI).get(URI) == b"terms"
    with pytest.raises(MoonflowError, match="127.0.0.1:9"):
        store_of("s3://moonflow/runs/a").check()


def test_keys_of_a_profile_count_before_those_of_the_runs_store(
    theirs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, secret = theirs["AWS_ACCESS_KEY_ID"], theirs["AWS_SECRET_ACCESS_KEY"]
    (tmp_path / "keys").write_text(f"[mine]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
    named = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "keys"), "AWS_PROFILE": "mine"}
    in_a_step({**named, "AWS_ENDPOINT_URL_S3": theirs["AWS_ENDPOINT_URL_S3"]}, monkeypatch)
    assert store_of(URI).get(URI) == b"terms"


def test_without_settings_of_the_callers_the_bucket_is_looked_for_at_aws(
    no_settings: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_a_step({}, monkeypatch)
    assert store_of(URI).endpoint == "AWS S3"
    assert os.environ["AWS_ENDPOINT_URL_S3"] == OWN["AWS_ENDPOINT_URL_S3"]
