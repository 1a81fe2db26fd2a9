"""What the cluster says about a job that does not run: Warning events, and why Kueue keeps it waiting.

Each is printed once, as one line. If waiting cannot help, the notice is called trouble and ends the job, as does an
image that cannot be pulled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from kubernetes.utils.quantity import parse_quantity

from components.runtime.launcher.cluster import Cluster
from components.runtime.launcher.reasons import Json, alive, cut, name

KINDS = frozenset({"TrainJob", "JobSet", "Job", "Pod"})
_TOLD_BY_STATE = frozenset({"FailedScheduling"})  # the pod's condition says the same, and says when it is over
_NOT_CREATED = re.compile(r"FailedCreate|\w*CreationFailed")
_PASSING = re.compile(
    r"exceeded quota|failed calling webhook|connection refused|timed? ?out|deadline exceeded|Internal error|unavailable"
    r"|too many requests|please (re)?try|has been modified|already exists|being (deleted|terminated)",
    re.IGNORECASE,
)
"""Words in refusals to create a pod or a Job that pass by themselves."""
_QUOTA = re.compile(r"requested: (?P<requested>\S+?), used: \S+?, limited: (?P<limited>[^\s,]+(,[^\s,=]+=[^\s,]+)*)")


class Notices:
    """The notices about one TrainJob, each printed once; ``where`` names the job in them."""

    def __init__(self, cluster: Cluster, where: str) -> None:
        self._cluster = cluster
        self._where = where
        self._told: set[str] = set()

    def look(self, job: Json, pods: Sequence[Json], nodes: int, queued: bool) -> str | None:
        """Print what is new; returns the trouble that keeps the job from running and will not pass, or None.

        Args:
            pods: the job's, of which ``nodes`` are wanted.
            queued: whether Kueue decides when the job starts.
        """
        events = list(_of(job, self._cluster.warnings()))
        workloads = self._cluster.workloads(job["metadata"].get("uid", "")) if queued else []
        kept = [(reason, text) for workload in workloads for reason, text in _waits(workload)]
        for event in events:
            if event.get("reason", "") not in _TOLD_BY_STATE:
                about = event["involvedObject"]
                self._tell(f"{about['kind']} {about['name']}: {event.get('reason', 'Warning')}", event, name(job))
        for reason, text in kept:
            self._tell(f"Kueue: {reason}", {"message": text}, name(job))
        refusals = [event for event in events if _NOT_CREATED.fullmatch(event.get("reason", ""))]
        waits = job["spec"].get("suspend") or len(alive(pods)) >= nodes
        # A refusal from before the newest pod, or before Kueue admitted the job, is out of date.
        last = refusals[-1] if refusals and _time(refusals[-1]) >= _last_progress(job, pods) else None
        if last is not None and not waits and (refused := _lasting(last)) is not None:
            return refused
        return next((f"Kueue: {text}" for reason, text in kept if _never_fits(reason, text)), None)

    def _tell(self, what: str, event: Json, job: str) -> None:
        line = f"{what}: {cut(event.get('message', ''))}"
        # The same refusal names another pod, or another number in use, each time.
        key = re.sub(r"\d+", "#", re.sub(rf"{re.escape(job)}[-\w]*", "", line))
        if key not in self._told:
            self._told.add(key)
            print(f"{self._where}: {line}", flush=True)


def _last_progress(job: Json, pods: Sequence[Json]) -> str:
    times = [pod["metadata"].get("creationTimestamp", "") for pod in pods]
    times += [row.get("lastTransitionTime", "") for row in job.get("status", {}).get("conditions") or []]
    return max(times, default="")


def _of(job: Json, events: Iterable[Json]) -> Iterator[Json]:
    """The events about the job and what was made for it, since it was created; oldest first."""
    stem, since = name(job), job["metadata"].get("creationTimestamp", "")
    for event in sorted(events, key=_time):
        about = event.get("involvedObject", {})
        ours = about.get("name", "") == stem or about.get("name", "").startswith(f"{stem}-")
        if ours and about.get("kind") in KINDS and _time(event) >= since:
            yield event


def _time(event: Json) -> str:
    """To the second, as a job's creation is given."""
    times = (event.get("lastTimestamp"), event.get("eventTime"), event["metadata"].get("creationTimestamp"))
    return next((f"{time[:19]}Z" for time in times if time), "")


def _lasting(event: Json) -> str | None:
    """Why a pod or a Job is refused, if waiting does not help."""
    message = str(event.get("message", ""))
    if _PASSING.search(message) and not _beyond_quota(message):
        return None
    return f"{event['reason']}: {event['involvedObject']['kind']} {event['involvedObject']['name']}: {cut(message)}"


def _beyond_quota(message: str) -> bool:
    """Whether one pod asks for more than the namespace's whole quota."""
    found = _QUOTA.search(message)
    if found is None:
        return False
    requested, limited = (
        dict(pair.split("=", 1) for pair in found[group].split(",")) for group in ("requested", "limited")
    )
    return any(parse_quantity(requested[key]) > parse_quantity(limited[key]) for key in requested.keys() & limited)


def _waits(workload: Json) -> Iterator[tuple[str, str]]:
    """Reason and message of the conditions by which Kueue does not admit a job, or evicts it."""
    rows: Sequence[Json] = workload.get("status", {}).get("conditions") or []
    for row in rows:
        if (row["type"], row["status"]) in {("QuotaReserved", "False"), ("Evicted", "True")}:
            yield str(row.get("reason", row["type"])), str(row.get("message", ""))


def _never_fits(reason: str, message: str) -> bool:
    """Whether the queue as it is will never take the job, however empty it becomes."""
    if reason == "ExceedsMaxQuota":
        return True
    if "insufficient unused quota" in message:  # another flavor would do once it is free
        return False
    return any(words in message for words in ("> maximum capacity", "unavailable in ClusterQueue", "doesn't exist"))
