"""`moonflow doctor` on the object store that the environment names."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from rich.console import Console

from components.runtime.store.object_store import ObjectStore
from pipelines import doctor
from pipelines.services import Services
from tests.http_server import Handler, serving


@pytest.fixture(autouse=True)
def environment(no_settings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PORTS", 2)


def told(tmp_path: Path) -> tuple[bool, str]:
    """Whether nothing is missing, and what is said of the store."""
    console = Console(record=True, width=400, file=io.StringIO())
    well = doctor.examine(tmp_path, console)
    lines = [line for line in console.export_text().splitlines() if "your object store" in line]
    return well, "\n".join(line for line in lines if "fix first" not in line)


@pytest.mark.services
def test_a_good_store_passes_and_nothing_is_left_in_it(
    services: Services, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in services.environment.items():
        monkeypatch.setenv(name, value)
    _, said = told(tmp_path)
    lines = said.splitlines()
    assert len(lines) == 3 and all(line.strip().startswith("ok") for line in lines), said
    assert "s3://moonflow/runs/ answers" in lines[0] and "write, read, delete" in lines[1]
    assert "conditional put" in lines[2]
    assert store.list(f"{doctor.PROBE}/") == []


def test_a_folder_store_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONFLOW_STORE", f"file://{tmp_path}/objects")
    _, said = told(tmp_path)
    assert said.count("ok ") == 3 and list((tmp_path / "objects").iterdir()) == []


def test_without_a_store_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(tmp_path)[1] == ""
    monkeypatch.setenv("AWS_PROFILE", "mine")
    _, said = told(tmp_path)
    assert "optional" in said and "AWS_PROFILE is set, MOONFLOW_STORE is not" in said


def test_a_store_that_is_away_or_wrongly_set_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOONFLOW_STORE", "s3://moonflow/runs")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "localhost:8333")
    well, said = told(tmp_path)
    assert not well and "missing" in said and "AWS_ENDPOINT_URL_S3 is 'localhost:8333'" in said
    for name, value in {
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    well, said = told(tmp_path)
    assert not well and "cannot be reached" in said and "fix what the message names" in said


class Lax(Handler):
    """An S3 server that ignores conditions, as rclone's does; ``read_only`` refuses what changes an object."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes]
    read_only = False

    def do_PUT(self) -> None:
        data = self.body()
        if self.headers.get("Content-Encoding", "") == "aws-chunked":
            data = data.split(b"\r\n")[1]
        if self.read_only:
            return self.reply(403, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>")
        self.objects[self._key()] = data
        self.reply(200, b"")

    def do_DELETE(self) -> None:
        self.objects.pop(self._key(), None)
        self.reply(204, b"")

    def do_HEAD(self) -> None:
        self.reply(200 if self._key() in self.objects else 404, b"")

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" in query:
            prefix = query.get("prefix", [""])[0]
            keys = "".join(f"<Contents><Key>{k}</Key></Contents>" for k in self.objects if k.startswith(prefix))
            return self.reply(200, f"<ListBucketResult>{keys}</ListBucketResult>".encode())
        if self._key() not in self.objects:
            return self.reply(404, b"<Error><Code>NoSuchKey</Code></Error>")
        self.reply(200, self.objects[self._key()])

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix("/moonflow/")


@pytest.fixture(params=[False, True], ids=["lax", "read-only"])
def lax(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Lax]]:
    handler = type("Handler", (Lax,), {"objects": {}, "read_only": request.param})
    with serving(handler) as address:
        for name, value in {
            "MOONFLOW_STORE": "s3://moonflow/runs", "AWS_ENDPOINT_URL_S3": address, "AWS_ACCESS_KEY_ID": "k",
            "AWS_SECRET_ACCESS_KEY": "s", "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        yield handler


def test_a_store_that_cannot_keep_manifests_is_told(lax: type[Lax], tmp_path: Path) -> None:
    well, said = told(tmp_path)
    last = said.splitlines()[-1]
    assert not well and "missing" in last and lax.objects == {}
    if lax.read_only:
        assert "write, read, delete" in last and "AccessDenied" in last and "allow these keys to put" in last
    else:
        assert "conditional put" in last and "was overwritten" in last and "honours If-None-Match" in last
