"""The Kubernetes API as the launcher needs it: a few calls of the official client. Objects are plain JSON, as the API
gives them.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import urllib3
from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException

from components.runtime.launcher.api_server import ApiServer, Patience, one_line
from components.runtime.launcher.body import GROUP, PLURAL, VERSION
from components.runtime.launcher.reasons import Json
from model.boundary.errors import MoonflowError

_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_DEFAULT_NAMESPACE = "moonflow"
_CONNECT_S, _READ_S = 5.0, 30.0
WORKFLOWS = ("argoproj.io", "v1alpha1", "workflows")
WORKLOADS = ("kueue.x-k8s.io", "v1beta2", "workloads")


class Gone(Exception):
    """The version asked for is too old to be watched from: list again."""


class Cluster:
    """The API server and the namespace that the step runs in."""

    def __init__(self, api: client.ApiClient, namespace: str, patience: Patience) -> None:
        self.namespace = namespace
        self.patience = patience
        self.server = ApiServer(api.configuration.host, namespace, patience)
        self._api = api
        self._jobs = (GROUP, VERSION, namespace, PLURAL)
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
                f"launcher trainjob finds no cluster ({one_line(error)}): run in a pod, or name a kubeconfig in "
                "KUBECONFIG"
            ) from None
        # The client's own retries know nothing of our limits: ApiServer makes them all.
        settings.retries = False
        return cls(client.ApiClient(settings), namespace, patience or Patience())

    def create(self, body: Json) -> Json | None:
        """The TrainJob created from ``body``; None if one of that name exists."""
        return self.server.send(
            "create TrainJobs",
            lambda: self._custom.create_namespaced_custom_object(
                *self._jobs, body, _request_timeout=(_CONNECT_S, _READ_S)
            ),
            {409},
        )

    def get(self, name: str) -> Json | None:
        """The TrainJob; None if there is none."""
        return self.server.send(
            "get TrainJobs",
            lambda: self._custom.get_namespaced_custom_object(
                *self._jobs, name, _request_timeout=(_CONNECT_S, _READ_S)
            ),
            {404},
        )

    def delete(self, name: str, *, within: float | None = None, version: str = "") -> bool:
        """Ask for the deletion of the TrainJob and, before it is gone, of its pods; no error if there is none.

        With ``version``, a resource version: only if the job has not changed since. Returns whether there was one.
        """
        # Foreground: while its name is taken its pods may still run, and no successor can start next to them.
        options: Json = {"propagationPolicy": "Foreground"}
        if version:
            options["preconditions"] = {"resourceVersion": version}
        answer = self.server.send(
            "delete TrainJobs",
            lambda: self._custom.delete_namespaced_custom_object(
                *self._jobs,
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
        found = self.server.send(
            "list TrainJobs",
            lambda: self._custom.list_namespaced_custom_object(
                *self._jobs,
                label_selector=selector,
                _request_timeout=(_CONNECT_S, _READ_S),
            ),
        )
        return found["items"] if found else []

    def newest(self, name: str) -> tuple[Json | None, str]:
        """The TrainJob, or None, and the resource version to watch on from."""
        found = self.server.send(
            "list TrainJobs",
            lambda: self._custom.list_namespaced_custom_object(
                *self._jobs,
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
                *self._jobs,
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
        answer = self.server.send(
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
        answer = self.server.send(
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
        found = self.server.send(
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
        found = self.server.send(
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
        self.server.send(
            "patch TrainJobs",
            lambda: self._custom.patch_namespaced_custom_object(
                *self._jobs,
                name,
                {"metadata": metadata},  # a merge: other labels stay, the list of owners is replaced
                _request_timeout=(_CONNECT_S, within or _READ_S),
            ),
            {404},
            within,
        )
