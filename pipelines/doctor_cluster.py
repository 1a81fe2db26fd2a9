"""The checks of ``moonflow doctor --cluster`` before a first run on a cluster. They change nothing.

Secrets are read without their values, which do not leave the server.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from rich.console import Console

from components.release.gitops import MANIFESTS
from components.runtime.launcher.body import CONFIG_MAP, NODE, SECRETS, SERVER_KEYS, SERVICE_ACCOUNT
from model.boundary.errors import MoonflowError
from pipelines.doctor import Finding, show

Json = dict[str, Any]
STEP_ACCOUNT = "moonflow-step"
SWEEPER = "moonflow-sweep"
KUBEFLOW = "kubeflow"
CONTROLLER = "workflow-controller-configmap"
PLATFORM = "kubectl apply -k manifests/overlays/<environment>/platform"
_TIMEOUT_S = (5.0, 15.0)
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"

# CRD, the API version that moonflow uses, whether every run needs it, and what to install.
CRDS = (
    ("workflows.argoproj.io", "v1alpha1", True, "install Kubeflow Pipelines 2.17 for many users, which brings Argo"),
    ("profiles.kubeflow.org", "v1", True, "install Kubeflow's profile controller"),
    ("trainjobs.trainer.kubeflow.org", "v1alpha1", True, "install Kubeflow Trainer 2.2 or 2.3"),
    ("clustertrainingruntimes.trainer.kubeflow.org", "v1alpha1", True, "install Kubeflow Trainer 2.2 or 2.3"),
    ("jobsets.jobset.x-k8s.io", "v1alpha2", True, "install JobSet, which Trainer needs"),
    ("localqueues.kueue.x-k8s.io", "v1beta2", True, "install Kueue with its integrations for TrainJobs and pods"),
    ("clusterqueues.kueue.x-k8s.io", "v1beta2", True, "install Kueue with its integrations for TrainJobs and pods"),
    ("leaderworkersets.leaderworkerset.x-k8s.io", "v1", False, "install LeaderWorkerSet 0.6 or later, for prod"),
    ("servicemonitors.monitoring.coreos.com", "v1", False, "install the Prometheus operator, or remove them"),
    ("applications.argoproj.io", "v1alpha1", False, "install Argo CD, or apply overlays by hand after each promotion"),
)  # fmt: skip
SETTINGS = ("MOONFLOW_STORE", "AWS_REGION", "MLFLOW_TRACKING_URI")
OPTIONAL_SETTINGS = ("MLFLOW_PUBLIC_URI", "MOONFLOW_GITOPS_REPO")
RUNTIMES = (("moonflow-torchrun", True), ("moonflow-deepspeed", False), ("moonflow-torchrun-gvisor", False))
QUEUES = ("train", "rollout")
OTHER_SECRETS = (SERVER_KEYS, "moonflow-git", "moonflow-signing")


def examine_cluster(namespace: str, console: Console) -> bool:
    """Print every finding; True if nothing needed is missing. MoonflowError if no cluster answers."""
    reader = Reader.connect()
    groups = (_server(reader), _kinds(reader), _namespace(reader, namespace), _settings(reader, namespace),
              _secrets(reader, namespace), _queues(reader, namespace), _runtimes(reader), _storage(reader),
              _accounts(reader, namespace), _retries(reader))  # fmt: skip
    checks = [check for group in groups for check in group]
    return show("moonflow doctor --cluster", checks, f"moonflow submit --namespace {namespace}", console)


class Forbidden(MoonflowError):
    """The user of the kubeconfig may not read that."""


class Reader:
    """Reads from the API server of the kubeconfig or of this pod, and asks it about rights."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api
        self.host = str(api.configuration.host)

    @classmethod
    def connect(cls) -> Reader:
        """MoonflowError if neither a kubeconfig nor a pod's account names a cluster."""
        settings = client.Configuration()
        try:
            if os.environ.get("KUBERNETES_SERVICE_HOST"):
                config.load_incluster_config(client_configuration=settings)
            else:
                config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=settings)
        except (ConfigException, OSError) as error:
            line = " ".join(str(error).split())
            raise MoonflowError(f"no cluster is known ({line}): name a kubeconfig in KUBECONFIG") from None
        settings.retries = 2
        return cls(client.ApiClient(settings))

    def get(self, path: str, accept: str = "application/json") -> Json | None:
        """The object at a path; None if it does not exist. Raises Forbidden, or MoonflowError if nothing answers."""
        try:
            return self._call("GET", path, accept)
        except ApiException as error:
            if error.status == 404:
                return None
            raise self._told(f"reading {path}", error) from None

    def may(self, account: str, attributes: Json) -> bool:
        """Whether the user ``account`` has a right, which is not used. Raises as ``get`` does."""
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": attributes}}  # fmt: skip
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        try:
            answer = self._call("POST", path, "application/json", body, {"Impersonate-User": account})
        except ApiException as error:
            raise self._told(f"asking for {account}", error) from None
        return bool(answer.get("status", {}).get("allowed"))

    def _call(
        self, method: str, path: str, accept: str, body: Json | None = None, headers: dict[str, str] | None = None
    ) -> Json:
        try:
            response, *_ = self._api.call_api(
                path, method, {}, [], {"Accept": accept, "Content-Type": "application/json", **(headers or {})}, body,
                auth_settings=["BearerToken"], _preload_content=False, _request_timeout=_TIMEOUT_S,
            )  # fmt: skip
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise MoonflowError(
                f"the Kubernetes API at {self.host} cannot be reached ({type(error).__name__}): check the kubeconfig's "
                "context and your network"
            ) from None
        found: Json = json.loads(response.data)
        return found

    def _told(self, doing: str, error: ApiException) -> MoonflowError:
        kind = Forbidden if error.status in (401, 403) else MoonflowError
        return kind(f"the Kubernetes API at {self.host} refused {doing} ({error.status} {error.reason})")


def _server(reader: Reader) -> Iterator[Finding]:
    version = (reader.get("/version") or {}).get("gitVersion", "")
    yield Finding("Kubernetes", bool(version), f"{version} at {reader.host}", "fix the kubeconfig's server")


def _found(
    reader: Reader, name: str, path: str, fix: str, needed: bool = True, accept: str = ""
) -> tuple[Finding, Json]:
    """Whether an object exists. One that may not be read counts as optional, so that it fails no check."""
    try:
        there = reader.get(path, *([accept] if accept else []))
    except Forbidden as error:
        return Finding(name, False, str(error), "ask as a user who may read it", needed=False), {}
    return Finding(name, there is not None, "found" if there is not None else "not found", fix, needed), there or {}


def _kinds(reader: Reader) -> Iterator[Finding]:
    for crd, wanted, needed, fix in CRDS:
        check, found = _found(
            reader, crd, f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd}", fix, needed
        )
        if not found:
            yield check
            continue
        served = [version["name"] for version in found["spec"]["versions"] if version.get("served")]
        release = found["metadata"].get("labels", {}).get("app.kubernetes.io/version", "")
        told = f"serves {', '.join(served)}" + (f", release {release}" if release else "")
        yield Finding(crd, wanted in served, told, f"{fix}: moonflow uses {wanted}", needed)


def _namespace(reader: Reader, namespace: str) -> Iterator[Finding]:
    yield _found(
        reader, f"Profile {namespace}", f"/apis/kubeflow.org/v1/profiles/{quote(namespace)}",
        "create the Profile before anything else: manifests/README.md",
    )[0]  # fmt: skip
    path = f"/api/v1/namespaces/{quote(namespace)}"
    check, found = _found(reader, f"namespace {namespace}", path, "create its Profile")
    owned = any(owner["kind"] == "Profile" for owner in found.get("metadata", {}).get("ownerReferences", []))
    if found and not owned:
        fix = "the Profile's controller refuses this namespace: delete it, create the Profile, apply again"
        check = Finding(check.name, False, "found, but its Profile does not own it", fix)
    yield check


def _settings(reader: Reader, namespace: str) -> Iterator[Finding]:
    at = f"/api/v1/namespaces/{quote(namespace)}/configmaps"
    check, found = _found(reader, f"ConfigMap {CONFIG_MAP}", f"{at}/{CONFIG_MAP}", PLATFORM)
    yield check
    for keys, needed in ((SETTINGS, True), (OPTIONAL_SETTINGS, False)):
        lacking = [key for key in keys if found and not found.get("data", {}).get(key)]
        if lacking:
            fix = "name them in platform/kustomization.yaml and apply it"
            yield Finding(f"{check.name}: settings", False, f"lacks {', '.join(lacking)}", fix, needed)
    yield _found(reader, "ConfigMap kfp-launcher", f"{at}/kfp-launcher", "the Profile's controller of KFP makes it")[0]
    fix = "create it from public.pem: without it no promoted checkpoint is served"
    yield _found(reader, "ConfigMap moonflow-signing-public", f"{at}/moonflow-signing-public", fix, needed=False)[0]


def _secrets(reader: Reader, namespace: str) -> Iterator[Finding]:
    for secret in (*SECRETS, *OTHER_SECRETS):
        path = f"/api/v1/namespaces/{quote(namespace)}/secrets/{secret}"
        fix = "create it if you need it: table of Secrets in manifests/README.md"
        yield _found(reader, f"Secret {secret}", path, fix, needed=False, accept=_METADATA)[0]


def _queues(reader: Reader, namespace: str) -> Iterator[Finding]:
    at = "/apis/kueue.x-k8s.io/v1beta2"
    places = [(f"LocalQueue {name}", f"{at}/namespaces/{quote(namespace)}/localqueues/{name}") for name in QUEUES]
    for name, path in (*places, ("ClusterQueue moonflow", f"{at}/clusterqueues/moonflow")):
        check, found = _found(reader, name, path, PLATFORM)
        for state in found.get("status", {}).get("conditions", []):
            if state["type"] == "Active" and state["status"] != "True":
                told = " ".join(str(state.get("message") or state.get("reason")).split())
                fix = "fix what the message names: no job is admitted until then"
                check = Finding(name, False, f"not active: {told}", fix)
        yield check


def _runtimes(reader: Reader) -> Iterator[Finding]:
    for name, needed in RUNTIMES:
        path = f"/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes/{name}"
        check, found = _found(reader, f"ClusterTrainingRuntime {name}", path, PLATFORM, needed)
        if any(_container(found).get("resources", {}).values()):
            fix = "remove them: Trainer 2.3 adds them to those of a TrainJob, which may then be refused"
            check = Finding(check.name, False, f"its container {NODE} names resources", fix, needed)
        yield check


def _container(runtime: Json) -> Json:
    for job in runtime.get("spec", {}).get("template", {}).get("spec", {}).get("replicatedJobs", []):
        for container in job["template"]["spec"]["template"]["spec"].get("containers", []):
            if container["name"] == NODE:
                found: Json = container
                return found
    return {}


def _storage(reader: Reader) -> Iterator[Finding]:
    name, fix = "default StorageClass", "mark one with storageclass.kubernetes.io/is-default-class=true"
    check, found = _found(reader, name, "/apis/storage.k8s.io/v1/storageclasses", fix)
    chosen = [
        each["metadata"]["name"] for each in found.get("items", [])
        if each["metadata"].get("annotations", {}).get("storageclass.kubernetes.io/is-default-class") == "true"
    ]  # fmt: skip
    if "items" in found:
        told = ", ".join(chosen) or "none: the volumes of MLflow and SeaweedFS stay Pending"
        check = Finding(name, bool(chosen), told, fix)
    yield check


def _accounts(reader: Reader, namespace: str) -> Iterator[Finding]:
    for account in (STEP_ACCOUNT, SERVICE_ACCOUNT):
        path = f"/api/v1/namespaces/{quote(namespace)}/serviceaccounts/{account}"
        yield _found(reader, f"ServiceAccount {account}", path, PLATFORM)[0]
    sweeper = f"/apis/batch/v1/namespaces/{quote(namespace)}/cronjobs/{SWEEPER}"
    fix = f"{PLATFORM}: without it the TrainJobs of terminated runs may keep running"
    yield _found(reader, f"CronJob {SWEEPER}", sweeper, fix, needed=False)[0]
    name, user = f"rights of {STEP_ACCOUNT}", f"system:serviceaccount:{namespace}:{STEP_ACCOUNT}"
    lacking = []
    try:
        for right in _rights():
            if not reader.may(user, {"namespace": namespace, **right}):
                subresource = f"/{right['subresource']}" if "subresource" in right else ""
                lacking.append(f"{right['verb']} {right['resource']}{subresource} {right.get('name', '')}".strip())
    except Forbidden as error:
        fix = f"ask as a user who may impersonate {user}: kubectl auth can-i --list --as={user} -n {namespace}"
        yield Finding(name, False, str(error), fix, needed=False)
        return
    told = f"may not {', '.join(lacking)}" if lacking else "all rights of the Role"
    yield Finding(name, not lacking, told, f"bind the Role {STEP_ACCOUNT}: {PLATFORM}")


def _rights() -> Iterator[Json]:
    """The rights that the Role of base/rbac gives to a step, one by one."""
    documents = yaml.safe_load_all((MANIFESTS / "base" / "rbac" / "step.yaml").read_text())
    (role,) = (document for document in documents if document["kind"] == "Role")
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource, _, subresource in (each.partition("/") for each in rule["resources"]):
                for verb in rule["verbs"]:
                    for name in rule.get("resourceNames", [""]):
                        right = {"group": group, "resource": resource, "subresource": subresource, "verb": verb}
                        yield {key: value for key, value in {**right, "name": name}.items() if value or key == "group"}


def _retries(reader: Reader) -> Iterator[Finding]:
    """What a profile's ``retries`` does on this server."""
    name = "retries of a step"
    where = f"{KUBEFLOW}/{CONTROLLER}, workflowDefaults.spec.templateDefaults.retryStrategy"
    fix = f"for failed steps too: retryPolicy Always in {where}"
    try:
        found = reader.get(f"/api/v1/namespaces/{KUBEFLOW}/configmaps/{CONTROLLER}")
    except Forbidden as error:
        yield Finding(name, False, str(error), f"ask its administrator; {fix}", needed=False)
        return
    try:
        defaults = yaml.safe_load((found or {}).get("data", {}).get("workflowDefaults", "")) or {}
        policy = str(defaults["spec"]["templateDefaults"]["retryStrategy"]["retryPolicy"])
    except (yaml.YAMLError, KeyError, TypeError):
        policy = ""
    if found is None:
        told = f"unknown: there is no ConfigMap {KUBEFLOW}/{CONTROLLER}"
    elif policy in ("", "Always", "OnFailure"):
        own = policy or "OnFailure, Argo's own"
        yield Finding(name, True, f"retryPolicy {own}: a failed step is repeated", "")
        return
    else:
        told = f"retryPolicy {policy}: a lost pod is repeated, a failed step is not; it waits for services by itself"
    yield Finding(name, False, told, fix, needed=False)
