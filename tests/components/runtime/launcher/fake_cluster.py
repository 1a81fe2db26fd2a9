"""A remote party for tests: an HTTP server that speaks the Kubernetes REST protocol for trainjobs, pods and pod logs.

Kept from the real one: resource versions that only grow, lists with a version, watches from a version with ADDED,
MODIFIED, DELETED, BOOKMARK and ERROR events, history that is compacted (410), Status objects as errors, foreground
deletion, logs with times that are cut to whole seconds by sinceTime, chunked transfer. A test scripts the controllers
(what becomes of a job) and the faults (what happens to which request).
"""

from __future__ import annotations

import copy
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.components.runtime.launcher.rest import NAMESPACE, ApiHandler, Fault, Request
from tests.http_server import serving
from tests.kubernetes_api import status, write_kubeconfig

Json = dict[str, Any]


class FakeCluster:
    """``on_create`` is the controllers' script: it runs in a thread of its own for each TrainJob."""

    def __init__(self, on_create: Callable[[FakeCluster, Json], None] | None = None) -> None:
        self.on_create = on_create
        self.validate: Callable[[Json], None] | None = None
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.deleted: list[str] = []
        self.on_delete: Callable[[str], None] | None = None
        self.bookmark_s = 0.2
        self.runtime_class = ""  # of the pods
        self.workflows: dict[str, Json] = {}  # Argo's, by name
        self.events: list[Json] = []
        self.workloads: list[Json] = []  # Kueue's
        self._changed = threading.Condition()
        self._version = 100
        self._oldest = 0  # versions up to this one have been compacted away
        self._jobs: dict[str, Json] = {}
        self._pods: dict[str, Json] = {}
        self._events: list[tuple[int, str, Json]] = []
        self._logs: dict[str, list[tuple[str, str]]] = {}
        self._ended_logs: set[str] = set()
        self._threads: list[threading.Thread] = []
        self._open = ExitStack()
        self.url = self._open.enter_context(serving(ApiHandler, fake=self))

    def close(self) -> None:
        self._open.close()
        for thread in self._threads:
            thread.join(10)

    def kubeconfig(self, folder: Path) -> Path:
        """A kubeconfig file that leads here."""
        return write_kubeconfig(folder, self.url, "secret", NAMESPACE)

    # What the controllers do.

    def job(self, name: str) -> Json | None:
        with self._changed:
            return copy.deepcopy(self._jobs.get(name))

    @property
    def names(self) -> list[str]:
        with self._changed:
            return list(self._jobs)

    def put_job(self, job: Json) -> Json:
        """Store a job as if it had been created earlier."""
        with self._changed:
            return self._store(copy.deepcopy(job), "ADDED")

    def condition(self, name: str, kind: str, status: str = "True", reason: str = "Fake", message: str = "") -> None:
        with self._changed:
            job = self._jobs.get(name)
            if job is None:
                return
            rows = job.setdefault("status", {}).setdefault("conditions", [])
            rows[:] = [row for row in rows if row["type"] != kind]
            rows.append(
                {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": _now()}
            )
            self._store(job, "MODIFIED")

    def touch(self, name: str) -> None:
        """A change that means nothing to the launcher."""
        with self._changed:
            self._jobs[name]["metadata"].setdefault("annotations", {})["touched"] = str(self._version)
            self._store(self._jobs[name], "MODIFIED")

    def compact(self) -> None:
        """Forget the history: watches from any version up to now are answered with 410."""
        with self._changed:
            self._version += 1
            self._oldest = self._version
            self._changed.notify_all()

    def remove_job(self, name: str) -> None:
        with self._changed:
            job = self._jobs.pop(name, None)
            for pod in [pod for pod in self._pods if pod.startswith(f"{name}-")]:
                self._end(pod)
                del self._pods[pod]
            if job is not None:
                self._version += 1
                job["metadata"]["resourceVersion"] = str(self._version)
                self._events.append((self._version, "DELETED", copy.deepcopy(job)))
                self._changed.notify_all()

    def pod(self, job: str, number: int = 0, rank: int = 0, **status: Any) -> str:
        """Create or replace pod ``number`` of a job; ``container`` is the container's state. Returns its name."""
        name = f"{job}-node-0-{rank}-{number}"
        container = status.pop("container", {"running": {"startedAt": _now()}})
        with self._changed:
            self._version += 1
            old = self._pods.get(name, {})
            self._pods[name] = {
                "metadata": {
                    "name": name,
                    "namespace": NAMESPACE,
                    "creationTimestamp": old.get("metadata", {}).get("creationTimestamp", _now()),
                    "labels": {
                        "jobset.sigs.k8s.io/jobset-name": job,
                        "jobset.sigs.k8s.io/replicatedjob-name": "node",
                        "batch.kubernetes.io/job-completion-index": str(rank),
                    },
                },
                "spec": {"containers": [{"name": "node", "resources": {"limits": {"memory": "64Gi"}}}]},
                "status": {"phase": "Running", "containerStatuses": [{"name": "node", "state": container}], **status},
            }
            if self.runtime_class:
                self._pods[name]["spec"]["runtimeClassName"] = self.runtime_class
            self._logs.setdefault(name, [])
            self._changed.notify_all()
        return name

    def remove_pod(self, name: str) -> None:
        """As the API server forgets a pod that was evicted."""
        with self._changed:
            self._end(name)
            del self._pods[name]

    def own_pod(self, name: str, **rest: Any) -> None:
        """The pod that a step runs in."""
        with self._changed:
            self._pods[name] = {"metadata": {"name": name, "labels": {}, **rest.pop("metadata", {})}, **rest}

    def workflow(
        self,
        name: str,
        phase: str = "Running",
        run_id: str = "",
        spec: Json | None = None,
        arguments: Json | None = None,
    ) -> Json:
        """A pipeline run's Workflow, as Kubeflow makes it; returns the reference by which it owns things."""
        parameters = [{"name": "runtime-config", "value": json.dumps({"parameterValues": arguments or {}})}]
        self.workflows[name] = {
            "metadata": {"name": name, "uid": f"uid-{name}", "labels": {"pipeline/runid": run_id}},
            "spec": {"arguments": {"parameters": parameters}, **(spec or {})},
            "status": {"phase": phase},
        }
        return {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": name, "uid": f"uid-{name}"}

    def event(self, kind: str, name: str, reason: str, message: str, type_: str = "Warning", at: str = "") -> None:
        """An event about an object, as controllers and the kubelet write them."""
        self.events.append(
            {
                "metadata": {"name": f"{name}.{len(self.events)}", "creationTimestamp": at or _now()},
                "involvedObject": {"kind": kind, "name": name},
                "type": type_,
                "reason": reason,
                "message": message,
                "lastTimestamp": at or _now(),
            }
        )

    def waits_in_queue(self, name: str, reason: str, message: str) -> None:
        """Kueue keeps the job waiting and says why in its Workload."""
        row = {"type": "QuotaReserved", "status": "False", "reason": reason, "message": message}
        owner = {"kind": "TrainJob", "name": name, "uid": self._jobs[name]["metadata"]["uid"]}
        metadata = {"name": f"trainjob-{name}-1a2b3", "ownerReferences": [owner]}
        self.workloads = [{"metadata": metadata, "status": {"conditions": [row]}}]
        self.condition(name, "Suspended", reason="Suspended")

    def log(self, pod: str, *lines: str, at: str = "") -> None:
        with self._changed:
            self._logs[pod] += [(at or _now(fraction=True), line) for line in lines]
            self._changed.notify_all()

    def end_log(self, pod: str) -> None:
        with self._changed:
            self._end(pod)

    def _end(self, pod: str) -> None:
        self._ended_logs.add(pod)
        self._changed.notify_all()

    def seen(self, kind: str) -> list[Request]:
        return [request for request in list(self.requests) if request.kind == kind]

    # What the API server does.

    def create(self, body: Json) -> tuple[int, Json]:
        name = body["metadata"]["name"]
        with self._changed:
            if name in self._jobs:
                return 409, status(409, "AlreadyExists", f'trainjobs.trainer.kubeflow.org "{name}" already exists')
            if self.validate is not None:
                try:
                    self.validate(body)
                except Exception as error:
                    return 422, status(422, "Invalid", str(error))
            job = copy.deepcopy(body)
            job["metadata"].update(uid=str(uuid.uuid4()), creationTimestamp=_now())
            stored = copy.deepcopy(self._store(job, "ADDED"))
        if self.on_create is not None:
            thread = threading.Thread(target=self.on_create, args=(self, stored), daemon=True)
            self._threads.append(thread)
            thread.start()
        return 201, stored

    def delete(self, name: str, options: Json) -> tuple[int, Json]:
        with self._changed:
            job = self._jobs.get(name)
            if job is None:
                return 404, status(404, "NotFound", f'trainjobs.trainer.kubeflow.org "{name}" not found')
            wanted = options.get("preconditions", {}).get("resourceVersion", "")
            if wanted and wanted != job["metadata"]["resourceVersion"]:
                return 409, status(409, "Conflict", f"the resourceVersion in the precondition is {wanted}")
            job["metadata"]["deletionTimestamp"] = _now()
            self._store(job, "MODIFIED")
            self.deleted.append(name)
        if self.on_delete is not None:
            self.on_delete(name)  # the script ends the pods and removes the job
        else:
            self.remove_job(name)
        return 200, {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    def patch(self, name: str, change: Json) -> tuple[int, Json]:
        """A merge patch (RFC 7386) without deletions."""
        with self._changed:
            job = self._jobs.get(name)
            if job is None:
                return 404, status(404, "NotFound", f'trainjobs.trainer.kubeflow.org "{name}" not found')
            _merge(job, change)
            return 200, copy.deepcopy(self._store(job, "MODIFIED"))

    def list_jobs(self, query: dict[str, str]) -> Json:
        with self._changed:
            items = [copy.deepcopy(job) for job in self._jobs.values() if _selected(job, query)]
            return {
                "apiVersion": "trainer.kubeflow.org/v1alpha1",
                "kind": "TrainJobList",
                "metadata": {"resourceVersion": str(self._version)},
                "items": items,
            }

    def list_pods(self, query: dict[str, str]) -> Json:
        with self._changed:
            items = [copy.deepcopy(pod) for pod in self._pods.values() if _selected(pod, query)]
            metadata = {"resourceVersion": str(self._version)}
            return {"apiVersion": "v1", "kind": "PodList", "metadata": metadata, "items": items}

    def get_pod(self, name: str) -> tuple[int, Json]:
        with self._changed:
            if name not in self._pods:
                return 404, status(404, "NotFound", f'pods "{name}" not found')
            return 200, copy.deepcopy(self._pods[name])

    def watch(self, query: dict[str, str]) -> Iterator[Json]:
        position = int(query.get("resourceVersion", "0"))
        until = time.monotonic() + float(query.get("timeoutSeconds", "60"))
        marked = time.monotonic()
        while (left := until - time.monotonic()) > 0:
            with self._changed:
                if position < self._oldest:
                    yield {
                        "type": "ERROR",
                        "object": status(410, "Expired", f"too old resource version: {position}"),
                    }
                    return
                news = [event for event in self._events if event[0] > position]
                if not news:
                    self._changed.wait(min(left, self.bookmark_s))
                    news = [event for event in self._events if event[0] > position]
                at = self._version
            for version, kind, job in news:
                position = version
                if _selected(job, query):
                    yield {"type": kind, "object": job}
            if query.get("allowWatchBookmarks") and not news and time.monotonic() - marked > self.bookmark_s:
                marked, position = time.monotonic(), max(position, at)
                mark = {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob"}
                yield {"type": "BOOKMARK", "object": {**mark, "metadata": {"resourceVersion": str(position)}}}

    def log_lines(self, pod: str, query: dict[str, str]) -> Iterator[str] | None:
        with self._changed:
            if pod not in self._logs or pod not in self._pods:
                return None
        since = query.get("sinceTime", "").split(".")[0].rstrip("Z")

        def lines() -> Iterator[str]:
            sent = 0
            while True:
                with self._changed:
                    rows = self._logs[pod][sent:]
                    ended = pod in self._ended_logs
                    if not rows and not ended and query.get("follow") == "true":
                        self._changed.wait(0.2)
                        rows = self._logs[pod][sent:]
                sent += len(rows)
                for stamp, text in rows:
                    if stamp.split(".")[0].rstrip("Z") >= since:
                        yield f"{stamp} {text}" if query.get("timestamps") == "true" else text
                if not rows and (ended or query.get("follow") != "true"):
                    return

        return lines()

    def take_fault(self, kind: str) -> Fault | None:
        with self._changed:
            for fault in self.faults:
                if fault.kind == kind and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def _store(self, job: Json, kind: str) -> Json:
        self._version += 1
        job["metadata"]["resourceVersion"] = str(self._version)
        self._jobs[job["metadata"]["name"]] = job
        self._events.append((self._version, kind, copy.deepcopy(job)))
        self._changed.notify_all()
        return job


def _merge(target: Json, change: Json) -> None:
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value


def _selected(thing: Json, query: dict[str, str]) -> bool:
    wanted = query.get("fieldSelector", "").removeprefix("metadata.name=")
    if wanted and thing["metadata"]["name"] != wanted:
        return False
    labels = thing["metadata"].get("labels", {})
    pairs = [pair.split("=", 1) for pair in query.get("labelSelector", "").split(",") if pair]
    return all(labels.get(key) == value for key, value in pairs)


def _now(fraction: bool = False) -> str:
    now = datetime.now(UTC)
    return now.strftime("%Y-%m-%dT%H:%M:%S.%f000Z" if fraction else "%Y-%m-%dT%H:%M:%SZ")
