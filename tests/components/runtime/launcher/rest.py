"""The HTTP side of the fake cluster: paths, answers, streams, and the faults that a test asks for."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from tests.http_server import Handler
from tests.kubernetes_api import status

if TYPE_CHECKING:
    from tests.components.runtime.launcher.fake_cluster import FakeCluster

Json = dict[str, Any]
NAMESPACE = "moonflow"
JOBS = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs"
WORKFLOWS = f"/apis/argoproj.io/v1alpha1/namespaces/{NAMESPACE}/workflows"
EVENTS = f"/api/v1/namespaces/{NAMESPACE}/events"
WORKLOADS = f"/apis/kueue.x-k8s.io/v1beta2/namespaces/{NAMESPACE}/workloads"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


@dataclass
class Fault:
    """What happens to the next ``times`` requests of a kind instead of, or during, their answer.

    ``kind`` is ``create``, ``get``, ``patch``, ``delete``, ``list``, ``watch``, ``pods``, ``workflow``,
    ``workflows``, ``events``, ``workloads`` or ``log``. ``status`` answers
    with an error; ``drop`` closes the connection before an answer, ``drop_after`` after so many lines of a stream, in
    the middle of the next line; ``lost`` does what was asked and then closes without an answer.
    """

    kind: str
    status: int = 0
    retry_after: int | None = None
    drop: bool = False
    drop_after: int | None = None
    lost: bool = False
    times: int = 1


@dataclass
class Request:
    kind: str
    path: str
    query: dict[str, str]
    at: float = field(default_factory=time.monotonic)


class Drop(Exception):
    """Close this connection now."""


class ApiHandler(Handler):
    fake: FakeCluster
    protocol_version = "HTTP/1.1"
    server_version = "fake-apiserver"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        watching = query.get("watch", "").lower() in {"true", "1"}
        tail = parts.path.rsplit("/", 1)[-1]
        if parts.path == JOBS:
            self._serve("watch" if watching else "list", parts.path, query)
        elif parts.path.startswith(f"{JOBS}/"):
            self._serve("get", parts.path, query, tail)
        elif parts.path == WORKFLOWS:
            self._serve("workflows", parts.path, query)
        elif parts.path.startswith(f"{WORKFLOWS}/"):
            self._serve("workflow", parts.path, query, tail)
        elif parts.path in (EVENTS, WORKLOADS):
            self._serve(tail, parts.path, query)
        elif parts.path == PODS:
            self._serve("pods", parts.path, query)
        elif parts.path.startswith(f"{PODS}/") and tail == "log":
            self._serve("log", parts.path, query, parts.path.split("/")[-2])
        elif parts.path.startswith(f"{PODS}/"):
            self._serve("pod", parts.path, query, tail)
        else:
            self.reply(404, status(404, "NotFound", "the server could not find the requested resource"))

    def do_POST(self) -> None:
        self._serve("create", self.path, {})

    def do_PATCH(self) -> None:
        self._serve("patch", self.path, {}, urlsplit(self.path).path.rsplit("/", 1)[-1])

    def do_DELETE(self) -> None:
        self._serve("delete", self.path, {}, urlsplit(self.path).path.rsplit("/", 1)[-1])

    def _serve(self, kind: str, path: str, query: dict[str, str], name: str = "") -> None:
        body = self.body()
        if self.headers.get("authorization") != "Bearer secret":
            return self.reply(401, status(401, "Unauthorized", "Unauthorized"))
        self.fake.requests.append(Request(kind, path, query))
        fault = self.fake.take_fault(kind)
        try:
            if fault is not None and fault.drop:
                raise Drop
            if fault is not None and fault.status:
                extra = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
                return self.reply(fault.status, status(fault.status, "Fault", "the fake was told to fail"), extra)
            if kind in {"watch", "log"}:
                return self._stream(kind, query, name, fault.drop_after if fault else None)
            code, answer = self._plain(kind, query, name, body)
            if fault is not None and fault.lost:
                raise Drop
            self.reply(code, answer)
        except (Drop, BrokenPipeError, ConnectionResetError):
            self.close_connection = True
            self.connection.close()

    def _plain(self, kind: str, query: dict[str, str], name: str, body: bytes) -> tuple[int, Json]:
        if kind == "create":
            return self.fake.create(json.loads(body))
        if kind == "delete":
            return self.fake.delete(name, json.loads(body or b"{}"))
        if kind == "patch":
            # Custom resources have no strategic merge; ours is a plain one.
            if self.headers.get("Content-Type") != "application/merge-patch+json":
                return 415, status(415, "UnsupportedMediaType", "the body is in an unknown format")
            return self.fake.patch(name, json.loads(body))
        if kind == "list":
            return 200, self.fake.list_jobs(query)
        if kind in ("events", "workloads"):
            rows = self.fake.events if kind == "events" else self.fake.workloads
            wanted = query.get("fieldSelector", "").removeprefix("type=")
            kept = [row for row in rows if not wanted or row["type"] == wanted]
            return 200, {"kind": "List", "metadata": {}, "items": kept}
        if kind == "workflows":
            return 200, {"kind": "WorkflowList", "metadata": {}, "items": list(self.fake.workflows.values())}
        if kind == "workflow":
            found = self.fake.workflows.get(name)
            return (200, found) if found else (404, status(404, "NotFound", f'workflows "{name}" not found'))
        if kind == "pods":
            return 200, self.fake.list_pods(query)
        if kind == "pod":
            return self.fake.get_pod(name)
        job = self.fake.job(name)
        return (200, job) if job else (404, status(404, "NotFound", f'trainjobs "{name}" not found'))

    def _stream(self, kind: str, query: dict[str, str], name: str, drop_after: int | None) -> None:
        if kind == "log":
            lines = self.fake.log_lines(name, query)
            if lines is None:
                return self.reply(404, status(404, "NotFound", f'pods "{name}" not found'))
        else:
            lines = (json.dumps(event) for event in self.fake.watch(query))
        self.send_response(200)
        self.send_header("Content-Type", "application/json" if kind == "watch" else "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, line in enumerate(lines):
            data = f"{line}\n".encode()
            if number == drop_after:
                self._chunk(data[: len(data) // 2])
                raise Drop
            self._chunk(data)
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()
