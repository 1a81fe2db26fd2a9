"""Following one TrainJob through lists and watches, whatever happens to the connection."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import urllib3
from kubernetes.client.exceptions import ApiException
from tenacity import RetryCallState, Retrying

from components.runtime.launcher.api_server import passing
from components.runtime.launcher.cluster import Cluster, Gone
from components.runtime.launcher.reasons import Json


@dataclass(frozen=True)
class Seen:
    """The job as it was last seen, or None once it is deleted."""

    job: Json | None


def follow(cluster: Cluster, name: str) -> Iterator[Seen]:
    """The TrainJob each time it changes, and at least each ``patience.watch`` seconds; ends after its deletion.

    A list gives the state and its version. Watches continue from there, and bookmarks move the version on. After a
    version that is too old (410), or a broken connection, the job is listed again. So no change is missed or told
    twice. Raises MoonflowError if the API server is away for longer than ``patience.outage``.
    """
    trouble = _Trouble(cluster)
    while True:
        job, version = cluster.newest(name)
        yield Seen(job)
        if job is None:
            return
        try:
            while True:
                for event in cluster.watch(name, version):
                    found: Json = event["raw_object"]
                    version = found["metadata"]["resourceVersion"]
                    trouble.over()
                    if event["type"] == "BOOKMARK":
                        continue
                    if event["type"] == "DELETED":
                        yield Seen(None)
                        return
                    job = found
                    yield Seen(job)
                trouble.over()
                yield Seen(job)
        except Gone:
            continue
        except (ApiException, urllib3.exceptions.HTTPError, OSError) as error:
            trouble.wait(error)


class _Trouble:
    """Waits after failed watches, longer each time, and gives up after ``patience.outage`` seconds without success."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._since = 0.0
        self._state = RetryCallState(Retrying(), None, (), {})

    def over(self) -> None:
        self._since = 0.0
        self._state.attempt_number = 0

    def wait(self, error: Exception) -> None:
        now = time.monotonic()
        self._since = self._since or now
        if not passing(error) or now - self._since > self._cluster.patience.outage:
            raise self._cluster.server.explain("watch TrainJobs", error) from None
        self._state.attempt_number += 1
        self._state.set_exception((type(error), error, None))
        time.sleep(self._cluster.server.wait(self._state))
