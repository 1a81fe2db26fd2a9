"""Remote parties of a promotion: a bare repository served over HTTP by Git's own CGI, and a forge that is a fake."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from components.release.gitops import MANIFESTS
from tests.http_server import Handler, serving

TOKEN = "token-that-nobody-may-see"
REPOSITORY = "/platform/gitops.git"


@dataclass
class Host:
    """What the server holds. ``refuse_next`` answers so many requests for pull requests with 502."""

    root: Path
    kind: str = "gitea"
    pulls: list[dict[str, Any]] = field(default_factory=list)
    refuse_next: int = 0
    opened: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def bare(self) -> Path:
        return self.root / REPOSITORY.strip("/")

    def git(self, *arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=self.bare, check=True, capture_output=True, text=True
        ).stdout.strip()

    def begin(self) -> None:
        """Push manifests/, as whoever installs a cluster does."""
        with tempfile.TemporaryDirectory() as folder:
            clone = shutil.copytree(MANIFESTS, Path(folder) / "clone")
            identity = ["-c", "user.name=platform", "-c", "user.email=platform@localhost"]
            for arguments in (["init", "--quiet"], ["add", "--all"], [*identity, "commit", "--quiet", "-m", "Install"],
                              ["push", "--quiet", str(self.bare), "HEAD:refs/heads/main"]):  # fmt: skip
                subprocess.run(["git", *arguments], cwd=clone, check=True)

    def merge(self, number: int, squash: bool = False) -> None:
        """Merge a pull request as a forge does: by a merge commit, or as one new commit with its title and body."""
        pull = self.pulls[number - 1]
        main, head = self.git("rev-parse", "main"), self.git("rev-parse", pull["head"]["ref"])
        tree = self.git("merge-tree", "--write-tree", main, head).splitlines()[0]
        message = f"{pull['title']}\n\n{pull['body']}" if squash else f"Merge #{number}"
        parents = ["-p", main] if squash else ["-p", main, "-p", head]
        identity = ["-c", "user.name=forge", "-c", "user.email=forge@localhost"]
        commit = self.git(*identity, "commit-tree", tree, *parents, "-m", message)
        self.git("update-ref", "refs/heads/main", commit, main)
        pull |= {"state": "closed", "merged": True, "merged_at": "2026-01-01T00:00:00Z"}
        pull["head"]["sha"] = head


@contextmanager
def git_host(root: Path, kind: str = "gitea", *, begun: bool = True) -> Iterator[Host]:
    """A host with one bare repository, empty unless ``begun``; reading and writing it takes the token."""
    host = Host(root, kind)
    host.bare.mkdir(parents=True)
    host.git("init", "--quiet", "--bare")
    host.git("config", "http.receivepack", "true")
    if begun:
        host.begin()
    with serving(_Handler, host=host) as host.url:
        yield host


class _Handler(Handler):
    host: Host

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        body = self._body()
        api = {"gitea": "/api/v1", "github": "/api/v3"}[self.host.kind]
        if path == f"{api}/repos/platform/gitops/pulls":
            self._pulls(body)
        elif path.startswith(REPOSITORY):
            self._git(path, body)
        else:
            self.reply(404, b"not found")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.body()
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _git(self, path: str, body: bytes) -> None:
        """Git's own CGI, behind basic authentication."""
        given = self.headers.get("Authorization", "").removeprefix("Basic ")
        if base64.b64decode(given).decode().partition(":")[2] != TOKEN:
            return self.reply(401, headers={"WWW-Authenticate": 'Basic realm="git"'})
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.host.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": urlsplit(self.path).query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "REMOTE_USER": "moonflow",
            "REMOTE_ADDR": "127.0.0.1",
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True, check=True)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.reply(int(headers.pop("Status", "200").split()[0]), content, headers)

    def _pulls(self, body: bytes) -> None:
        if self.headers.get("Authorization") != f"token {TOKEN}":
            return self.reply(401, {"message": "bad credentials"})
        with self.host.lock:
            if self.host.refuse_next:
                self.host.refuse_next -= 1
                return self.reply(502, {"message": "bad gateway"})
            if self.command == "GET":
                return self.reply(200, self._listed(parse_qs(urlsplit(self.path).query)))
            asked = json.loads(body)
            if any(p["head"]["ref"] == asked["head"] and p["state"] == "open" for p in self.host.pulls):
                return self.reply({"gitea": 409, "github": 422}[self.host.kind], {"message": "already exists"})
            number = len(self.host.pulls) + 1
            pull = {
                "number": number,
                "html_url": f"{self.host.url}/platform/gitops/pulls/{number}",
                "state": "open",
                "merged": False,
                "title": asked["title"],
                "body": asked["body"],
                "head": {"ref": asked["head"], "sha": self.host.git("rev-parse", asked["head"])},
                "base": {"ref": asked["base"]},
            }
            self.host.pulls.append(pull)
            self.host.opened += 1
            return self.reply(201, pull)

    def _listed(self, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        size = int(query["per_page" if self.host.kind == "github" else "limit"][0])
        first = (int(query["page"][0]) - 1) * size
        found = self.host.pulls[::-1]
        if self.host.kind == "github":
            owner, _, branch = query["head"][0].partition(":")
            found = [pull for pull in found if owner == "platform" and pull["head"]["ref"] == branch]
        for pull in found:
            if pull["state"] == "open":  # as on a forge, an open one follows its branch
                pull["head"]["sha"] = self.host.git("rev-parse", pull["head"]["ref"])
        return found[first : first + size]
