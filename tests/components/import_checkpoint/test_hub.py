"""A repository of the Hugging Face Hub, over HTTP from a server that speaks its protocol."""

from __future__ import annotations

import errno
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from components.import_checkpoint.sources import find
from model.boundary.errors import MoonflowError, Transient, Unavailable

COMMIT = "1234567890abcdef1234567890abcdef12345678"
FILES = {"config.json": b"{}", "LICENSE": b"terms", "model.safetensors": b"weights" * 1000, "figures/a.png": b"x"}


class Hub(BaseHTTPRequestHandler):
    """The two requests that an import makes: a repository's listing, and one file of one commit."""

    asked: list[str] = []
    broken: set[str] = set()
    refused: dict[str, tuple[int, str]] = {}

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        if path in ("/api/models/owner/name", "/api/models/owner/name/revision/v1"):
            siblings: list[dict[str, Any]] = [{"rfilename": name, "size": len(data)} for name, data in FILES.items()]
            digest = hashlib.sha256(FILES["model.safetensors"]).hexdigest()
            siblings[2]["lfs"] = {"sha256": digest, "size": siblings[2]["size"], "pointerSize": 134}
            self._answer(200, json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith("/api/models/owner/name/revision/"):
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith("/api/"):
            self._answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        else:
            name = path.removeprefix(f"/owner/name/resolve/{COMMIT}/")
            if name in self.broken:
                self._answer(500, b"")
            elif name in self.refused:
                status, code = self.refused[name]
                self._answer(status, b"{}", {"X-Error-Code": code})
            else:
                digest = hashlib.sha256(FILES[name]).hexdigest()
                self._answer(200, FILES[name], {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"'})

    do_HEAD = do_GET

    def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    Hub.asked, Hub.broken, Hub.refused = [], set(), {}
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("revision", ["", "v1"])
def test_files_of_one_commit_are_fetched_one_at_a_time(hub: type[Hub], revision: str, tmp_path: Path) -> None:
    source = find("hf://owner/name", revision, tmp_path)
    assert source.foreign and source.revision == COMMIT
    assert source.files.names() == ["LICENSE", "config.json", "model.safetensors"]
    assert source.published == {"model.safetensors": hashlib.sha256(FILES["model.safetensors"]).hexdigest()}
    for name in source.files.names():
        with source.files.open(name) as path:
            assert path.read_bytes() == FILES[name]
        assert not path.exists()
    assert f"/owner/name/resolve/{COMMIT}/model.safetensors" in hub.asked


def test_what_is_not_there_or_not_reached_is_one_line(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MoonflowError, match=r"import_checkpoint.source: .* has no repository owner/other"):
        find("hf://owner/other", "", tmp_path)
    with pytest.raises(MoonflowError, match="import_checkpoint.revision: hf://owner/name has no revision 'v2'"):
        find("hf://owner/name", "v2", tmp_path)
    source = find("hf://owner/name", "", tmp_path)
    hub.broken = {"config.json"}
    with pytest.raises(Transient, match=r"config.json cannot be fetched") as caught, source.files.open("config.json"):
        pass
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MoonflowError, match="import_checkpoint.source: hf://owner/name: no answer from .*127.0.0.1:9"):
        find("hf://owner/name", "", tmp_path)


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (403, "GatedRepo", "LICENSE is not for you: accept .*, and give the token of that account in HF_TOKEN"),
        (401, "GatedRepo", "LICENSE is not for you: .* HF_TOKEN"),
        (404, "RepoNotFound", "LICENSE is not for you: .* HF_TOKEN"),
        (404, "EntryNotFound", "hf://owner/name has no LICENSE"),
    ],
)
def test_what_the_hub_refuses_is_no_outage(hub: type[Hub], tmp_path: Path, status: int, code: str, told: str) -> None:
    source = find("hf://owner/name", "", tmp_path)
    hub.refused = {"LICENSE": (status, code)}
    with pytest.raises(MoonflowError, match=told) as caught, source.files.open("LICENSE"):
        pass
    assert not isinstance(caught.value, Transient) and "\n" not in str(caught.value)


def test_a_full_disk_is_told_as_such(hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    source = find("hf://owner/name", "", tmp_path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(Unavailable, match="disk full while writing"), source.files.open("LICENSE"):
        pass
