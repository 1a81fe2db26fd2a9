"""Requests to the Kubernetes API server, sent again while it is overloaded, restarting or out of reach.

When that does not help, the error is one line.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import urllib3
from kubernetes.client.exceptions import ApiException
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from components.runtime.launcher.body import GROUP, VERSION
from model.boundary.errors import MoonflowError

_PASSING = {408, 429, 500, 502, 503, 504}  # statuses of an API server that may answer a later request
_RETRY_AFTER_MAX_S = 60.0
Result = TypeVar("Result")


@dataclass(frozen=True)
class Patience:
    """How long the launcher waits, in seconds, for each thing that it waits for.

    Attributes:
        watch: one watch request; pods are looked at after each.
        backoff, backoff_max: before a request is repeated, doubled each time, with jitter.
        outage: for the API server to come back.
        unstartable: for what keeps pods from starting (an image pull, a container's configuration) to be put right.
        gone: for a deleted job to be gone.
        stop: for the last requests of a process that was asked to end.
    """

    watch: float = 15.0
    backoff: float = 0.5
    backoff_max: float = 30.0
    outage: float = 900.0
    unstartable: float = 120.0
    gone: float = 300.0
    stop: float = 10.0


class ApiServer:
    """Sends requests, and turns what the client raises into one line."""

    def __init__(self, host: str, namespace: str, patience: Patience) -> None:
        """``host`` and ``namespace`` are what errors name."""
        self._host = host
        self._namespace = namespace
        self._patience = patience

    def send(
        self,
        doing: str,
        request: Callable[[], Result],
        expected: frozenset[int] | set[int] = frozenset(),
        within: float | None = None,
    ) -> Result | None:
        """``request()``, or None if it ends with one of the ``expected`` statuses.

        Args:
            doing: what an error says was asked for, such as "list pods".
            within: seconds for all attempts; None = ``patience.outage``.

        Raises:
            MoonflowError: the server refuses, or does not recover in time.
        """
        limit = self._patience.outage if within is None else within
        attempts = Retrying(
            retry=retry_if_exception(passing), stop=stop_after_delay(limit), wait=self.wait, reraise=True
        )
        try:
            return attempts(request)
        except ApiException as error:
            if error.status in expected:
                return None
            raise self.explain(doing, error) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self.explain(doing, error) from None

    def wait(self, state: RetryCallState) -> float:
        """Seconds before the next attempt: what the server asks for (Retry-After), else a growing random time."""
        error = state.outcome.exception() if state.outcome else None
        if (asked := retry_after(error)) is not None:
            return asked
        return wait_random_exponential(self._patience.backoff, self._patience.backoff_max)(state)

    def explain(self, doing: str, error: Exception) -> MoonflowError:
        """One line for what the client raised."""
        where = f"the Kubernetes API at {self._host}"
        if not isinstance(error, ApiException):
            return MoonflowError(
                f"{where} cannot be reached ({one_line(error)}): a running job goes on; run again to attach to it"
            )
        message = _message(error)
        if error.status in {401, 403}:
            return MoonflowError(
                f"{where} refused to {doing} in namespace {self._namespace} ({message}): bind the ServiceAccount of "
                "this pod to its Role of manifests/base: moonflow-step for a task, moonflow-sweep for the sweeper"
            )
        if error.status == 404 and doing.endswith("TrainJobs"):
            return MoonflowError(
                f"{where} knows no TrainJob of {GROUP}/{VERSION} in namespace {self._namespace} ({message}): install "
                'Kubeflow Trainer 2.2 or later, or set launcher = "in-process"'
            )
        if passing(error):
            return MoonflowError(
                f"{where} did not recover ({error.status} {message}): a running job goes on; run again to attach to it"
            )
        return MoonflowError(f"{where} rejected the request to {doing} ({error.status} {message})")


def passing(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, ApiException):
        # 0 is the client's word for a broken TLS connection; a wrong certificate stays wrong.
        return error.status in _PASSING or (error.status == 0 and "CERTIFICATE" not in str(error.reason))
    return isinstance(error, urllib3.exceptions.HTTPError | OSError)


def retry_after(error: BaseException | None) -> float | None:
    """The seconds of an answer's Retry-After, at most a minute; None if it has none."""
    headers = getattr(error, "headers", None) or {}
    text = str(headers.get("Retry-After", ""))
    return min(float(text), _RETRY_AFTER_MAX_S) if text.isdigit() else None


def _message(error: ApiException) -> str:
    try:
        told = json.loads(error.body or "")["message"]
    except (ValueError, KeyError, TypeError):
        told = error.reason or "no reason given"
    return one_line(told)


def one_line(what: object) -> str:
    """At most 300 characters, without line breaks."""
    return " ".join(str(what).split())[:300]
