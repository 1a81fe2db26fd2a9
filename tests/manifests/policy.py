"""The rules that every object we apply must follow: a function from objects to the rules that they break."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from components.runtime.launcher import body
from tests.manifests.overlays import Json, label

PROFILE = "moonflow"
"""The namespace that is a Kubeflow Profile's too: its controller labels it istio-injection=enabled."""
LONG_RUNNING = ("Deployment", "StatefulSet", "LeaderWorkerSet")


def violations(objects: tuple[Json, ...] | list[Json]) -> list[str]:
    """One line per broken rule, `<kind> <namespace>/<name>: <what>`; empty if all hold."""
    bound = {
        (subject["namespace"], subject["name"])
        for o in objects
        if o["kind"] == "RoleBinding"
        for subject in o["subjects"]
        if subject["kind"] == "ServiceAccount"
    }
    broken = [f"{label(o)}: {what}" for o in objects for what in _of_one(o, bound)]
    return broken + list(_of_namespaces(objects)) + list(_of_budgets(objects))


def pod_templates(object_: Json) -> Iterator[tuple[str, Json]]:
    """Every pod template inside an object, by its role."""
    spec = object_.get("spec", {})
    if object_["kind"] in ("Deployment", "StatefulSet"):
        yield "", spec["template"]
    elif object_["kind"] == "LeaderWorkerSet":
        yield "leader", spec["leaderWorkerTemplate"]["leaderTemplate"]
        yield "worker", spec["leaderWorkerTemplate"]["workerTemplate"]
    elif object_["kind"] == "ClusterTrainingRuntime":
        for job in spec["template"]["spec"]["replicatedJobs"]:
            yield job["name"], job["template"]["spec"]["template"]
    elif object_["kind"] == "CronJob":
        yield "", spec["jobTemplate"]["spec"]["template"]
    else:
        assert object_["kind"] not in ("Pod", "Job", "DaemonSet", "JobSet"), f"teach me {label(object_)}"


def containers(pod: Json) -> list[Json]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def _of_one(object_: Json, bound: set[tuple[str, str]]) -> Iterator[str]:
    if object_["kind"] == "Secret":
        yield "secrets are not kept in Git"
    if object_["kind"] == "ServiceAccount" and "automountServiceAccountToken" not in object_:
        yield "does not say whether its token is mounted"
    if object_["kind"] in ("Role", "ClusterRole"):
        yield from _of_rules(object_)
    for role, template in pod_templates(object_):
        account = (object_["metadata"].get("namespace", ""), template["spec"].get("serviceAccountName", ""))
        if template["spec"].get("automountServiceAccountToken") is not False and account not in bound:
            yield f"{role} mounts a token of the Kubernetes API without need".strip()
        for what in _of_pod(object_["kind"], role, template["spec"]):
            yield f"{role} {what}".strip()
        # A ClusterTrainingRuntime has no namespace: its pods are in that of the runs.
        if object_["metadata"].get("namespace", PROFILE) == PROFILE:
            labels = template.get("metadata", {}).get("labels", {})
            if labels.get("sidecar.istio.io/inject") != "false":
                yield f"{role} pods get a sidecar of Istio".strip()


def _of_rules(role: Json) -> Iterator[str]:
    for rule in role["rules"]:
        if "*" in rule["apiGroups"] + rule["resources"] + rule["verbs"]:
            yield f"wildcard in {rule}"
        if "secrets" in rule["resources"] and not rule.get("resourceNames"):
            yield "may read every secret"
        if {"pods/exec", "escalate", "bind", "impersonate"} & {*rule["resources"], *rule["verbs"]}:
            yield f"can become someone else by {rule}"


def _of_pod(kind: str, role: str, pod: Json) -> Iterator[str]:
    security = pod.get("securityContext", {})
    if not security.get("runAsNonRoot") or not security.get("runAsUser"):
        yield "may run as root: set runAsNonRoot and a numeric runAsUser"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has no seccomp profile"
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield f"sets {field}"
    for volume in pod.get("volumes", []):
        if "hostPath" in volume:
            yield f"volume {volume['name']} is the host's"
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"volume {volume['name']} may fill the node"
    for container in containers(pod):
        for what in _of_container(container):
            yield f"container {container['name']} {what}"
        for what in _of_resources(container, given=kind == "ClusterTrainingRuntime" and container["name"] == body.NODE):
            yield f"container {container['name']} {what}"
    if kind in LONG_RUNNING:
        for container in pod["containers"]:
            # A group's worker has no HTTP server before it is ready, and the leader's probe speaks for it after.
            wanted = ("readinessProbe",) if role == "worker" else ("startupProbe", "readinessProbe", "livenessProbe")
            missing = [probe for probe in wanted if probe not in container]
            if missing:
                yield f"container {container['name']} has no {', '.join(missing)}"
            for probe in {"startupProbe", "readinessProbe", "livenessProbe"} & container.keys():
                if container[probe].get("timeoutSeconds", 1) < 2:
                    yield f"container {container['name']}: {probe} has the flapping default timeout of a second"


def _of_container(container: Json) -> Iterator[str]:
    image = container["image"]
    if "@sha256:" not in image and (":" not in image.rsplit("/", 1)[-1] or image.endswith(":latest")):
        yield f"has no fixed image: {image}"
    security = container.get("securityContext", {})
    if security.get("privileged"):
        yield "is privileged"
    if security.get("allowPrivilegeEscalation") is not False:
        yield "allows privilege escalation"
    if security.get("capabilities", {}) != {"drop": ["ALL"]}:
        yield "keeps or adds capabilities"
    if not security.get("readOnlyRootFilesystem"):
        yield "can write to its image's files"
    for variable in container.get("env", []):
        if "value" in variable and any(word in variable["name"] for word in ("SECRET", "TOKEN", "PASSWORD", "KEY")):
            yield f"has a secret in plain text: {variable['name']}"


def _of_resources(container: Json, given: bool) -> Iterator[str]:
    """``given``: each TrainJob brings the container's resources, Trainer 2.3 keeps what else the runtime names."""
    resources = container.get("resources", {})
    if given:
        if resources:
            yield "names resources, which stay in addition to those of a TrainJob"
        return
    for part in ("requests", "limits"):
        missing = {"cpu", "memory"} - resources.get(part, {}).keys()
        if missing:
            yield f"has no {part} for {', '.join(sorted(missing))}"


def _of_namespaces(objects: tuple[Json, ...] | list[Json]) -> Iterator[str]:
    for namespace in (o["metadata"]["name"] for o in objects if o["kind"] == "Namespace"):
        mine = [o for o in objects if o["metadata"].get("namespace") == namespace]
        denies = [o for o in mine if o["kind"] == "NetworkPolicy" and _denies_all(o["spec"])]
        if not denies:
            yield f"Namespace {namespace}: no default deny"
        for kind in ("ResourceQuota", "LimitRange"):
            if not any(o["kind"] == kind for o in mine):
                yield f"Namespace {namespace}: no {kind}"
    for namespace in (o for o in objects if o["kind"] == "Namespace"):
        level = namespace["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce")
        if level not in ("baseline", "restricted"):
            yield f"Namespace {namespace['metadata']['name']}: pod security is not enforced"


def _denies_all(spec: dict[str, Any]) -> bool:
    return spec["podSelector"] == {} and set(spec["policyTypes"]) == {"Ingress", "Egress"} and not (
        spec.get("ingress") or spec.get("egress")
    )  # fmt: skip


def _of_budgets(objects: tuple[Json, ...] | list[Json]) -> Iterator[str]:
    budgets = [o for o in objects if o["kind"] == "PodDisruptionBudget"]
    for object_ in objects:
        if object_["kind"] in LONG_RUNNING:
            for role, template in pod_templates(object_):
                labels = template["metadata"]["labels"]
                if not any(
                    b["metadata"].get("namespace") == object_["metadata"].get("namespace")
                    and b["spec"]["selector"]["matchLabels"].items() <= labels.items()
                    for b in budgets
                ):
                    yield f"{label(object_)}: no PodDisruptionBudget for its {role} pods".replace("  ", " ")
