"""A Kubernetes API server for tests that only reads: objects by path, over real HTTP.

It refuses what the real one refuses: unknown paths, what the caller may not read, a Secret's values where only its
metadata is asked for; and it counts what would have changed something.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.http_server import Handler
from tests.http_server import serving as listening
from tests.kubernetes_api import status, write_kubeconfig

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


@contextmanager
def serving(fake: FakeApi, folder: Path) -> Iterator[Path]:
    """The path of a kubeconfig that leads to ``fake``."""

    class Answer(Handler):
        def do_GET(self) -> None:
            self.reply(*fake.get(self.path, self.headers.get("Accept", "")))

        def do_POST(self) -> None:
            body = json.loads(self.body())
            self.reply(*fake.post(self.path, self.headers.get("Impersonate-User", ""), body))

        def do_PATCH(self) -> None:
            fake.changes.append(self.path)
            self.reply(405, {})

        do_PUT = do_DELETE = do_PATCH

    with listening(Answer) as address:
        yield write_kubeconfig(folder, address, "t")
