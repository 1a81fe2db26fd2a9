"""How long a TrainJob queued: from its creation until the first of its pods had a node, by the cluster's own times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime

from components.runtime.launcher.cluster import Cluster
from components.runtime.launcher.reasons import Json, condition, name
from model.boundary.errors import MoonflowError

SCHEDULED = "moonflow.dev/first-pod-scheduled"
"""The annotation of a TrainJob that keeps the time: its first pod may be gone when a later attempt attaches."""


class Queued:
    """What is known of one TrainJob; ``tell`` gets the seconds once, as soon as they are known."""

    def __init__(self, cluster: Cluster, tell: Callable[[float], object]) -> None:
        self._cluster = cluster
        self._tell = tell
        self._told = False

    def look(self, job: Json, pods: Sequence[Json]) -> None:
        """``pods`` are the job's. If the time cannot be read, or cannot be stored with the job, the step goes on."""
        if self._told:
            return
        metadata = job["metadata"]
        kept = (metadata.get("annotations") or {}).get(SCHEDULED, "")
        scheduled = kept or _first_scheduled(pods)
        if not scheduled:
            return
        self._told = True
        with suppress(KeyError, ValueError, TypeError):
            waited = datetime.fromisoformat(scheduled) - datetime.fromisoformat(metadata["creationTimestamp"])
            self._tell(max(0.0, waited.total_seconds()))
        if not kept:
            with suppress(MoonflowError):
                self._cluster.annotate(name(job), {SCHEDULED: scheduled}, within=self._cluster.patience.stop)


def _first_scheduled(pods: Sequence[Json]) -> str:
    """The earliest time at which a pod had a node, RFC 3339; "" if none has."""
    found = [(condition(pod, "PodScheduled") or {}).get("lastTransitionTime") for pod in pods]
    return min(filter(None, found), default="")
