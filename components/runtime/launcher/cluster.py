"""The Kubernetes API as the launcher needs it: a few calls through the official client, tried again while the API
server is overloaded, restarting or out of reach, and explained in one line when that does not help.

Objects are plain JSON, as the API gives them.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import urllib3
from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from components.runtime.launcher.body import GROUP, PLURAL, VERSION
from components.runtime.launcher.reasons import Json
from model.errors import MoonflowError

_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_DEFAULT_NAMESPACE = "moonflow"
_PASSING = {408, 429, 500, 502, 503, 504}  # states of an API server that another request may find ended
_CONNECT_S, _READ_S = 5.0, 30.0
_RETRY_AFTER_MAX_S = 60.0
WORKFLOWS = ("argoproj.io", "v1alpha1", "workflows")
WORKLOADS = ("kueue.x-k8s.io", "v1beta2", "workloads")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Patience:
    """How long the launcher waits for what, in seconds.

    Attributes:
        watch: one watch request; pods are looked at after each.
        backoff, backoff_max: before a request is repeated, doubled each time, with jitter.
        outage: for the API server to come back.
        unstartable: for an image pull, a container's configuration, or what refuses the pods to mend itself.
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


class Gone(Exception):
    """The version asked for is too old to be watched from: list again."""


class Cluster:
    """The API server and the namespace that the step runs in."""

    def __init__(self, api: client.ApiClient, namespace: str, patience: Patience) -> None:
        self.namespace = namespace
        self.patience = patience
        self._api = api
        self._custom = client.CustomObjectsApi(api)
        self._core = client.CoreV1Api(api)

    @classmethod
    def connect(cls, patience: Patience | None = None) -> Cluster:
        """By the pod's ServiceAccount, else by the kubeconfig; MoonflowError if there is neither."""
        settings = client.Configuration()
        namespace = _DEFAULT_NAMESPACE
        try:
            if os.environ.get("KUBERNETES_SERVICE_HOST"):
                config.load_incluster_config(client_configuration=settings)
                if _POD_NAMESPACE.is_file():
                    namespace = _POD_NAMESPACE.read_text().strip()
            else:
                config.load_kube_config(client_configuration=settings)
                context: Json = config.list_kube_config_contexts()[1]["context"]
                namespace = context.get("namespace") or namespace
        except (ConfigException, OSError) as error:
            raise MoonflowError(
                f"launcher trainjob finds no cluster ({_line(error)}): run in a pod, or name a kubeconfig in KUBECONFIG"
            ) from None
        # The client's own repetitions know nothing of our limits; they are all made here.
        settings.retries = False
        return cls(client.ApiClient(settings), namespace, patience or Patience())

    def create(self, body: Json) -> Json | None:
        """The TrainJob created from ``body``; None if one of that name exists."""
        return self._ask(
            "create TrainJobs",
            lambda: self._custom.create_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURAL, body, _request_timeout=(_CONNECT_S, _READ_S)
            ),
            {409},
        )

    def get(self, name: str) -> Json | None:
        """The TrainJob; None if there is none."""
        return self._ask(
            "get TrainJobs",
            lambda: self._custom.get_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURAL, name, _request_timeout=(_CONNECT_S, _READ_S)
            ),
            {404},
        )

    def delete(self, name: str, *, within: float | None = None, version: str = "") -> bool:
        """Ask for the deletion of the TrainJob and, before it is gone, of its pods; no error if there is none.

        With ``version``, a resource version: only if the job has not changed since. Returns whether there was one.
        """
        # Foreground: while its name is taken its pods may still run, and no successor can start beside them.
        options: Json = {"propagationPolicy": "Foreground"}
        if version:
            options["preconditions"] = {"resourceVersion": version}
        answer = self._ask(
            "delete TrainJobs",
            lambda: self._custom.delete_namespaced_custom_object(
                GROUP,
                VERSION,
                self.namespace,
                PLURAL,
                name,
                body=options,
                _request_timeout=(_CONNECT_S, within or _READ_S),
            ),
            {404, 409} if version else {404},
            within,
        )
        return answer is not None

    def adopt(self, name: str, labels: Mapping[str, str], owners: Sequence[Json]) -> None:
        """Set labels of a TrainJob, and its owners if any are given; no error if there is no such job."""
        self._patch(name, {"labels": dict(labels), **({"ownerReferences": list(owners)} if owners else {})})

    def annotate(self, name: str, annotations: Mapping[str, str], *, within: float) -> None:
        """Set annotations of a TrainJob, tried for ``within`` seconds; no error if there is no such job."""
        self._patch(name, {"annotations": dict(annotations)}, within)

    def labelled(self, selector: str) -> list[Json]:
        """The TrainJobs with a label, ``name=value``."""
        found = self._ask(
            "list TrainJobs",
            lambda: self._custom.list_namespaced_custom_object(
                GROUP,
                VERSION,
                self.namespace,
                PLURAL,
                label_selector=selector,
                _request_timeout=(_CONNECT_S, _READ_S),
            ),
        )
        return found["items"] if found else []

    def newest(self, name: str) -> tuple[Json | None, str]:
        """The TrainJob, or None, and the resource version to watch on from."""
        found = self._ask(
            "list TrainJobs",
            lambda: self._custom.list_namespaced_custom_object(
                GROUP,
                VERSION,
                self.namespace,
                PLURAL,
                field_selector=f"metadata.name={name}",
                _request_timeout=(_CONNECT_S, _READ_S),
            ),
        )
        assert found is not None
        items = found["items"]
        return (items[0] if items else None), found["metadata"]["resourceVersion"]

    def watch(self, name: str, version: str) -> Iterator[Json]:
        """Events of the TrainJob after ``version`` for ``patience.watch`` seconds, bookmarks included.

        Raises Gone if ``version`` is too old, and what the client raises if the connection breaks.
        """
        try:
            yield from watch.Watch().stream(
                self._custom.list_namespaced_custom_object,
                GROUP,
                VERSION,
                self.namespace,
                PLURAL,
                field_selector=f"metadata.name={name}",
                resource_version=version,
                allow_watch_bookmarks=True,
                timeout_seconds=max(1, round(self.patience.watch)),
                # A connection that died silently ends here too.
                _request_timeout=(_CONNECT_S, self.patience.watch + 10),
            )
        except ApiException as error:
            if error.status == 410:
                raise Gone from None
            raise

    def pods(self, job: str) -> list[Json]:
        """The pods of the TrainJob, those of earlier attempts included while they exist, oldest first."""
        # Trainer names the JobSet as the TrainJob, and JobSet labels its pods with that name.
        answer = self._ask(
            "list pods",
            lambda: (
                self._core.list_namespaced_pod(
                    self.namespace,
                    label_selector=f"jobset.sigs.k8s.io/jobset-name={job}",
                    _preload_content=False,
                    _request_timeout=(_CONNECT_S, _READ_S),
                ).data
            ),
        )
        found: list[Json] = json.loads(answer or b"{}").get("items", [])
        return sorted(found, key=lambda pod: pod["metadata"].get("creationTimestamp", ""))

    def warnings(self) -> list[Json]:
        """The namespace's events of type Warning; none without the right to see them."""
        answer = self._ask(
            "list events",
            lambda: (
                self._core.list_namespaced_event(
                    self.namespace,
                    field_selector="type=Warning",
                    _preload_content=False,
                    _request_timeout=(_CONNECT_S, _READ_S),
                ).data
            ),
            {403},
        )
        found: list[Json] = json.loads(answer or b"{}").get("items", [])
        return found

    def workloads(self, owner: str) -> list[Json]:
        """Kueue's Workloads of the object with the UID ``owner``; none without Kueue or the right to see them."""
        found = self._ask(
            "list Workloads",
            lambda: self._custom.list_namespaced_custom_object(
                *WORKLOADS[:2], self.namespace, WORKLOADS[2], _request_timeout=(_CONNECT_S, _READ_S)
            ),
            {403, 404},
        )
        return [
            row
            for row in (found or {}).get("items", [])
            if owner in {reference["uid"] for reference in row["metadata"].get("ownerReferences") or []}
        ]

    def own_pod(self) -> Json | None:
        """The pod that this process runs in, or None outside of the cluster or without the right to see it."""
        name = os.environ.get("KFP_POD_NAME") or socket.gethostname()
        try:
            answer = self._core.read_namespaced_pod(
                name, self.namespace, _preload_content=False, _request_timeout=self.patience.stop / 2
            )
        except (ApiException, urllib3.exceptions.HTTPError):
            return None
        pod: Json = json.loads(answer.data)
        return pod

    def workflow(self, name: str) -> Json | None:
        """Argo's Workflow of a pipeline run; None if there is none. Asks once, and raises what the client raises."""
        try:
            found: Json = self._custom.get_namespaced_custom_object(
                *WORKFLOWS[:2], self.namespace, WORKFLOWS[2], name, _request_timeout=self.patience.stop / 2
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return found

    def workflows(self) -> list[Json]:
        """Argo's Workflows: the pipeline runs of this namespace that are not deleted."""
        found = self._ask(
            "list Workflows",
            lambda: self._custom.list_namespaced_custom_object(
                *WORKFLOWS[:2], self.namespace, WORKFLOWS[2], _request_timeout=(_CONNECT_S, _READ_S)
            ),
        )
        return found["items"] if found else []

    def log(self, pod: str, container: str, since: str, follow: bool) -> Iterator[str]:
        """Lines of a container, each after its RFC 3339 time and a blank, from the second of ``since`` on (or all).

        Raises what the client raises; 404 and 400 say that there is no such pod or no log yet.
        """
        query = [("container", container), ("timestamps", "true"), ("follow", str(follow).lower())]
        if since:
            query.append(("sinceTime", since))  # the generated method knows sinceSeconds only: this clock, not theirs
        response, *_ = self._api.call_api(
            "/api/v1/namespaces/{namespace}/pods/{name}/log",
            "GET",
            {"namespace": self.namespace, "name": pod},
            query,
            {"Accept": "*/*"},
            auth_settings=["BearerToken"],
            _preload_content=False,
            _request_timeout=(_CONNECT_S, 60.0),
        )
        try:
            yield from watch.watch.iter_resp_lines(response)
        finally:
            response.close()
            response.release_conn()

    def _patch(self, name: str, metadata: Json, within: float | None = None) -> None:
        self._ask(
            "patch TrainJobs",
            lambda: self._custom.patch_namespaced_custom_object(
                GROUP,
                VERSION,
                self.namespace,
                PLURAL,
                name,
                {"metadata": metadata},  # a merge: other labels stay, the list of owners is replaced
                _request_timeout=(_CONNECT_S, within or _READ_S),
            ),
            {404},
            within,
        )

    def _ask(
        self,
        doing: str,
        request: Callable[[], Result],
        expected: frozenset[int] | set[int] = frozenset(),
        within: float | None = None,
    ) -> Result | None:
        """``request()``, or None if it ends with one of the ``expected`` statuses."""
        limit = self.patience.outage if within is None else within
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
        return wait_random_exponential(self.patience.backoff, self.patience.backoff_max)(state)

    def explain(self, doing: str, error: Exception) -> MoonflowError:
        """One line for what the client raised."""
        where = f"the Kubernetes API at {self._api.configuration.host}"
        if not isinstance(error, ApiException):
            return MoonflowError(
                f"{where} cannot be reached ({_line(error)}): a running job goes on; run again to attach to it"
            )
        message = _message(error)
        if error.status in {401, 403}:
            return MoonflowError(
                f"{where} refused to {doing} in namespace {self.namespace} ({message}): bind the ServiceAccount of "
                "this pod to its Role of manifests/base: moonflow-step for a task, moonflow-sweep for the sweeper"
            )
        if error.status == 404 and doing.endswith("TrainJobs"):
            return MoonflowError(
                f"{where} knows no TrainJob of {GROUP}/{VERSION} in namespace {self.namespace} ({message}): install "
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
        # 0 is the client's word for a broken TLS connection; a certificate does not mend itself.
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
    return _line(told)


def _line(what: object) -> str:
    return " ".join(str(what).split())[:300]
