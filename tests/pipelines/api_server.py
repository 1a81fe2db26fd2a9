"""A Kubernetes API server for tests that only reads: objects by path, over real HTTP.

It refuses what the real one refuses: unknown paths, what the caller may not read, a Secret's values where only its
metadata is asked for; and it counts what would have changed something.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


@dataclass
class FakeApi:
    objects: dict[str, Json]
    forbidden: set[str] = field(default_factory=set)
    denied: set[tuple[str, str]] = field(default_factory=set)
    """(verb, resource) that the account has no right to."""
    reviews: list[tuple[str, Json]] = field(default_factory=list)
    accepted: dict[str, str] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)

    def get(self, path: str, accept: str) -> tuple[int, Json]:
        self.accepted[path] = accept
        if path in self.forbidden:
            return 403, status(403, "Forbidden", f"cannot get {path}")
        if (found := self.objects.get(path)) is None:
            return 404, status(404, "NotFound", "the server could not find the requested resource")
        if "as=PartialObjectMetadata" in accept:
            return 200, {"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": found["metadata"]}
        return 200, found

    def post(self, path: str, user: str, body: Json) -> tuple[int, Json]:
        if path != REVIEWS:
            self.changes.append(path)
            return 405, status(405, "MethodNotAllowed", "reading only")
        if path in self.forbidden:
            return 403, status(403, "Forbidden", f"cannot impersonate {user}")
        asked = body["spec"]["resourceAttributes"]
        self.reviews.append((user, asked))
        allowed = (asked["verb"], asked["resource"]) not in self.denied
        return 201, {**body, "status": {"allowed": allowed}}


def status(code: int, reason: str, message: str) -> Json:
    about = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    return {**about, "code": code, "reason": reason, "message": message}


@contextmanager
def serving(fake: FakeApi, folder: Path) -> Iterator[Path]:
    """The path of a kubeconfig that leads to ``fake``."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(*fake.get(self.path, self.headers.get("Accept", "")))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(*fake.post(self.path, self.headers.get("Impersonate-User", ""), body))

        def do_PATCH(self) -> None:
            fake.changes.append(self.path)
            self._answer(405, {})

        do_PUT = do_DELETE = do_PATCH

        def _answer(self, code: int, body: Json) -> None:
            data = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    path = folder / "kubeconfig"
    path.write_text(
        yaml.safe_dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "x", "clusters": [cluster],
            "contexts": [context], "users": [{"name": "u", "user": {"token": "t"}}],
        })
    )  # fmt: skip
    try:
        yield path
    finally:
        server.shutdown()
        server.server_close()
