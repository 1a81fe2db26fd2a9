"""Whatever is wrong with the settings of S3 is one line that names the variable, and no line holds a key."""

from __future__ import annotations

import os
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from components.runtime.store.open_store import open_store
from components.runtime.store.s3_errors import request_errors
from model.boundary.errors import MoonflowError
from tests.http_server import Handler, serving

KEY_ID, SECRET = "AKIA" + "EXAMPLEEXAMPLE12", "wJalrXUtnFEMIexample"
NO_KEYS = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
PROFILES = """
[profile process]
credential_process = /bin/false
[profile loop]
role_arn = arn:aws:iam::1:role/x
source_profile = none
[profile sso]
sso_start_url = x
sso_region = us-east-1
sso_account_id = 1
sso_role_name = x
"""


@pytest.fixture(autouse=True)
def settings(no_settings: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "profiles").write_text(PROFILES)
    (tmp_path / "broken").write_text("[[[broken\nx")
    (tmp_path / "no.pem").write_text("nope")
    for name, value in {
        "HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": str(tmp_path / "profiles"),
        "MOONFLOW_STORE": "s3://moonflow/runs", "AWS_ENDPOINT_URL_S3": "https://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        *(({"AWS_ENDPOINT_URL_S3": text}, "AWS_ENDPOINT_URL_S3") for text in (
            "localhost:8333", "ftp://localhost", "http://", "http://host:abc", "http://host:99999999", "http://lo cal",
            "http://localhost:9\n", "http://[::1", "http://host/?x", "http://me:" + "hunter2@host",
        )),
        ({"AWS_ENDPOINT_URL_S3": "", "AWS_ENDPOINT_URL": "localhost:1"}, "AWS_ENDPOINT_URL is"),
        *(({"AWS_REGION": text}, "AWS_REGION") for text in ("us east_1!", "ünicode", "us-east-1\n")),
        ({"AWS_PROFILE": "missing"}, "AWS_PROFILE"),
        ({"AWS_CONFIG_FILE": "broken"}, "AWS_CONFIG_FILE"),
        ({"AWS_SHARED_CREDENTIALS_FILE": "broken", **NO_KEYS}, "AWS_SHARED_CREDENTIALS_FILE"),
        ({"AWS_CA_BUNDLE": "absent.pem"}, "AWS_CA_BUNDLE"),
        ({"AWS_CA_BUNDLE": "no.pem"}, "AWS_CA_BUNDLE"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, "AWS_SECRET_ACCESS_KEY is not"),
        ({"AWS_ACCESS_KEY_ID": ""}, "AWS_ACCESS_KEY_ID is not"),
        (NO_KEYS, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": f"{KEY_ID}\n"}, "AWS_ACCESS_KEY_ID"),
        ({"AWS_SECRET_ACCESS_KEY": f"{SECRET} "}, "AWS_SECRET_ACCESS_KEY"),
        ({"AWS_SESSION_TOKEN": "tökentoken"}, "AWS_SESSION_TOKEN"),
        ({"AWS_DEFAULTS_MODE": "odd"}, "AWS_DEFAULTS_MODE"),
        ({"AWS_REQUEST_CHECKSUM_CALCULATION": "odd"}, "AWS_REQUEST_CHECKSUM_CALCULATION"),
        ({"AWS_STS_REGIONAL_ENDPOINTS": "odd"}, "AWS_STS_REGIONAL_ENDPOINTS"),
        ({"AWS_PROFILE": "process", **NO_KEYS}, "AWS_PROFILE"),
        ({"AWS_PROFILE": "loop", **NO_KEYS}, "AWS_PROFILE"),
        ({"AWS_PROFILE": "sso", **NO_KEYS}, "aws sso login"),
        ({"AWS_WEB_IDENTITY_TOKEN_FILE": "/absent", "AWS_ROLE_ARN": "arn:aws:iam::1:role/x", **NO_KEYS},
         "AWS_WEB_IDENTITY_TOKEN_FILE"),
        ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://example.org/x", **NO_KEYS}, "AWS_"),
        ({"MOONFLOW_STORE": "s3://Bad Bucket/x"}, "Bad Bucket"),
        ({"MOONFLOW_STORE": "s3://buc#ket/x"}, "buc#ket"),
        ({"HTTPS_PROXY": "http://127.0.0.1:abc"}, "HTTPS_PROXY"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_wrong_setting_is_one_line_with_its_name(
    wrong: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in wrong.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name)
    with pytest.raises(MoonflowError) as raised:
        open_store().check()
    told = str(raised.value)
    assert named in told and "\n" not in told
    assert KEY_ID not in told and SECRET not in told and "hunter2" not in told


class EmptyStore(Handler):
    """An S3 server whose buckets are empty; it keeps the headers of what it was asked."""

    asked: list[Message]

    def do_GET(self) -> None:
        self.asked.append(self.headers)
        self.reply(200, b"<ListBucketResult/>")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Message]]:
    """Headers of the requests that reach the store of the environment."""
    headers: list[Message] = []
    with serving(EmptyStore, asked=headers) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        yield headers


def test_a_given_environment_has_its_session_token(asked: list[Message]) -> None:
    open_store({**os.environ, "AWS_SESSION_TOKEN": "a-token"}).check()
    assert asked[-1]["X-Amz-Security-Token"] == "a-token" and f"Credential={KEY_ID}/" in asked[-1]["Authorization"]


def test_a_profiles_region_counts(asked: list[Message], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "profiles").write_text("[profile far]\nregion = eu-west-3\n")
    monkeypatch.setenv("AWS_PROFILE", "far")
    open_store().check()
    assert "/eu-west-3/s3/" in asked[-1]["Authorization"]


@pytest.mark.parametrize(
    ("code", "says"),
    [("InvalidAccessKeyId", "refused"), ("AuthorizationHeaderMalformed", "fix AWS_REGION"),
     ("InvalidBucketName", "no legal bucket name"), ("KeyTooLongError", "rejected")],
)  # fmt: skip
def test_a_servers_answer_is_one_line_without_the_key(code: str, says: str) -> None:
    answer = {"Error": {"Code": code, "Message": f"The id {KEY_ID}\nor ASIAOTHEROTHER12345 is unknown"}}
    with pytest.raises(MoonflowError, match=says) as raised, request_errors("s3://b/k", "http://host"):
        raise ClientError(answer, "GetObject")
    told = str(raised.value)
    assert "\n" not in told and KEY_ID not in told and "ASIAOTHER" not in told
