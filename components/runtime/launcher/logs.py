"""The log of a job's first pod, line by line on our own stdout, across broken connections and replaced pods."""

from __future__ import annotations

import threading
import time
from collections import deque

import urllib3
from kubernetes.client.exceptions import ApiException

from components.runtime.launcher.api_server import retry_after
from components.runtime.launcher.body import NODE
from components.runtime.launcher.cluster import Cluster

TAIL = 200  # lines kept for the reason of a failure
_DRAIN_S = 20.0
_HURRY_S = 2.0  # between attempts to read the rest of the log once the job has ended


class PodLog:
    """Follows the container ``node`` of one pod after another in a thread of its own.

    A pod's log is read with times. After a break it is read again from the second of the last line on (the API knows
    no smaller unit), and lines that were printed are left out: those before the last time, and as many with that time
    as were seen.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.tail: deque[str] = deque(maxlen=TAIL)
        self._cluster = cluster
        self._pod = ""
        self._printed: dict[str, tuple[str, int]] = {}  # pod -> time of its last line, lines printed with that time
        self._ending = threading.Event()
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pod-log", daemon=True)

    def follow(self, pod: str) -> None:
        """Print the log of ``pod`` from now on; no effect if it is followed already."""
        if pod != self._pod and not self._ending.is_set():
            if self._pod:
                print(f"--- pod {self._pod} is replaced by {pod}", flush=True)
            self._pod = pod
            self._news.set()
            if not self._thread.is_alive():
                self._thread.start()

    def end(self) -> None:
        """Print what is left of the log; the containers have ended, so it ends too. Returns in 20 s at most."""
        self._ending.set()
        self._news.set()
        if self._thread.is_alive():
            self._thread.join(_DRAIN_S)

    def _run(self) -> None:
        patience = self._cluster.patience
        failures = 0
        while True:
            self._news.clear()
            ending = self._ending.is_set()
            # While the job runs the connection is kept open; at the end the rest is read at once.
            error = self._read(self._pod, follow=not ending)
            if ending and (error is None or failures >= 3):
                return
            failures = failures + 1 if error else 0
            if error:
                pause = retry_after(error) or min(patience.backoff_max, patience.backoff * 2.0**failures)
                self._ending.wait(max(0.0, pause - _HURRY_S))
                time.sleep(min(pause, _HURRY_S))
            else:
                self._news.wait(patience.watch)  # the log of a pod that has ended and may be replaced

    def _read(self, pod: str, follow: bool) -> Exception | None:
        """Print what is new; None if the stream ended as it should."""
        before, count = self._printed.get(pod, ("", 0))
        passed = 0
        try:
            for line in self._cluster.log(pod, NODE, _second(before), follow):
                stamp, _, text = line.partition(" ")
                time_ = _padded(stamp)
                if time_ < before:
                    continue
                if time_ == before and passed < count:
                    passed += 1
                    continue
                last, same = self._printed.get(pod, ("", 0))
                self._printed[pod] = (time_, same + 1 if time_ == last else 1)
                self.tail.append(text)
                print(text, flush=True)
        except (ApiException, urllib3.exceptions.HTTPError, OSError) as error:
            # No pod, or a container that has not started: there is nothing to read yet, or no more.
            return None if isinstance(error, ApiException) and error.status in {400, 404} else error
        return None


def _padded(stamp: str) -> str:
    """A UTC time with nine decimals, so that times compare as text: the kubelet drops trailing zeros."""
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    return f"{whole}.{fraction:0<9}"


def _second(stamp: str) -> str:
    return f"{stamp.partition('.')[0]}Z" if stamp else ""
