"""Why a job failed, in one line: from its condition, its pods and the end of its log, all plain JSON and text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from components.runtime.launcher.worker import ERROR_MARK

Json = dict[str, Any]

UNSTARTABLE = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
)
"""Reasons for which the kubelet retries to start a container, mostly without success."""

_NCCL = re.compile(
    r"\bNCCL (WARN|ERROR)\b|\bnccl\w*(Error|Exception)\b|NCCL error|ProcessGroupNCCL.*(timeout|timed out|abort)"
    r"|Watchdog caught collective operation timeout"
)
_CUDA_MEMORY = re.compile(r"CUDA out of memory|torch\.OutOfMemoryError|HIP out of memory")
_EXCEPTION = re.compile(r"^(\[rank\d+\]:\s*)?[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b")
_MAX = 400  # characters of a quoted line


def of_failure(job: Json, pods: Sequence[Json], log: Sequence[str]) -> str:
    """The reason of a TrainJob whose ``Failed`` condition is true; ``pods`` may be gone, ``log`` may be empty."""
    failed = condition(job, "Failed") or {}
    if failed.get("reason") == "DeadlineExceeded":
        seconds = job.get("spec", {}).get("activeDeadlineSeconds", 0)
        return f"deadline: it ran longer than {seconds / 3600:g} h; raise deadline_hours and run again, it resumes"
    for found in (_memory(pods), _disrupted(pods), _not_started(pods), _nccl(log), _exit(pods, log)):
        if found:
            return found
    told = f"{failed.get('reason', 'Failed')}: {failed.get('message', '')}".rstrip(": ")
    return f"{told}; last log line: {from_log(log)}" if log else told


def from_log(lines: Sequence[str]) -> str:
    """The most telling line of a log: the worker's error, else an exception's last line, else the last line."""
    for line in reversed(lines):
        if ERROR_MARK in line:
            return cut(line.partition(ERROR_MARK)[2])
    for line in reversed(lines):
        # torchrun's summary of its ranks comes last; what the ranks wrote themselves is above it.
        if _EXCEPTION.match(line) and "ChildFailedError" not in line:
            return cut(line)
    last = next((line for line in reversed(lines) if line.strip(" =-")), "")
    return cut(last) or "it wrote nothing"


def unstartable(pods: Iterable[Json]) -> str | None:
    """Why a container of ``pods`` cannot be started (image, configuration), or None."""
    for pod, _, state in _states(pods):
        waiting = state.get("waiting") or {}
        if waiting.get("reason") in UNSTARTABLE:
            return f"{waiting['reason']}: pod {name(pod)}: {cut(waiting.get('message', 'no message'))}"
    return None


def disruption(pod: Json) -> str | None:
    """Why the cluster takes ``pod`` away (preemption, eviction, node drain), or None."""
    # Kubernetes sets it before it deletes a pod by eviction, preemption or taint, and for no other reason.
    found = condition(pod, "DisruptionTarget")
    if found:
        return f"{found.get('reason', 'disrupted')}: {cut(found.get('message', ''))}".rstrip(": ")
    status = pod.get("status", {})
    if status.get("reason") in {"Evicted", "Preempting", "NodeShutdown", "NodeLost", "Shutdown", "Terminated"}:
        return f"{status['reason']}: {cut(status.get('message', ''))}".rstrip(": ")
    return None


def condition(thing: Json, kind: str) -> Json | None:
    """The status condition ``kind`` of an object if it is true, else None."""
    rows = thing.get("status", {}).get("conditions") or []
    return next((row for row in rows if row["type"] == kind and row["status"] == "True"), None)


def run_ended(workflow: Json | None) -> bool:
    """Whether a pipeline run is over or is being ended. ``workflow`` is its Workflow, None if that is deleted."""
    if workflow is None or workflow["metadata"].get("deletionTimestamp"):
        return True
    spec = workflow.get("spec", {})
    # Kubeflow Pipelines terminates a run by a deadline of 0; Argo's own `stop` and `terminate` set shutdown.
    if spec.get("shutdown") or spec.get("activeDeadlineSeconds") == 0:
        return True
    return workflow.get("status", {}).get("phase") in {"Succeeded", "Failed", "Error"}


def owning_workflow(owners: Iterable[Json]) -> Json | None:
    """The reference to the Workflow among an object's owners, or None."""
    return next((row for row in owners if row.get("kind") == "Workflow"), None)


def alive(pods: Iterable[Json]) -> list[Json]:
    """Those that have not ended."""
    return [pod for pod in pods if pod.get("status", {}).get("phase") not in {"Failed", "Succeeded"}]


def name(thing: Json) -> str:
    return str(thing["metadata"]["name"])


def _memory(pods: Sequence[Json]) -> str | None:
    for pod, container, state in _states(pods):
        if (state.get("terminated") or {}).get("reason") == "OOMKilled":
            return (
                f"OOMKilled: pod {name(pod)} used more than its memory limit of {_limit(pod, container)}; "
                "raise memory, or lower shared_memory, which counts towards it"
            )
    return None


def _disrupted(pods: Sequence[Json]) -> str | None:
    for pod in pods:
        if (why := disruption(pod)) is not None:
            return f"preempted: pod {name(pod)}: {why}; run again, it resumes from its last checkpoint"
    return None


def _not_started(pods: Sequence[Json]) -> str | None:
    return unstartable(pods)


def _nccl(log: Sequence[str]) -> str | None:
    # The first message is the cause; the others follow from it, on this rank and on others.
    line = next((line for line in log if _NCCL.search(line)), None)
    return f"NCCL: {cut(line)}" if line else None


def _exit(pods: Sequence[Json], log: Sequence[str]) -> str | None:
    memory = next((line for line in reversed(log) if _CUDA_MEMORY.search(line)), None)
    if memory:
        return f"accelerator out of memory: {cut(memory)}"
    for pod, _, state in _states(pods):
        if code := (state.get("terminated") or {}).get("exitCode", 0):
            return f"pod {name(pod)} ended with exit code {code}: {from_log(log)}"
    return None


def _states(pods: Iterable[Json]) -> Iterator[tuple[Json, str, Json]]:
    """Pod, container name and state of each container, the present state before the last one."""
    for pod in pods:
        status = pod.get("status", {})
        for row in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
            for state in (row.get("state") or {}, row.get("lastState") or {}):
                if state:
                    yield pod, row["name"], state


def _limit(pod: Json, container: str) -> str:
    rows = pod.get("spec", {}).get("containers", [])
    found: Json = next((row for row in rows if row["name"] == container), {})
    return str(found.get("resources", {}).get("limits", {}).get("memory", "unknown size"))


def cut(line: str) -> str:
    """One line of at most 400 characters."""
    line = " ".join(line.split())
    return line if len(line) <= _MAX else line[: _MAX - 3] + "..."
