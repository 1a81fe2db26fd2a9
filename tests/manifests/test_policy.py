"""Our objects keep the rules, and each rule is one that an object can break."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from tests.manifests.overlays import OVERLAYS, Json, objects
from tests.manifests.policy import pod_templates, violations


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_rule_is_broken(overlay: str) -> None:
    assert violations(objects(overlay)) == []


def pod(o: Json) -> Json:
    return o["spec"]["template"]["spec"]


def server(o: Json) -> Json:
    return pod(o)["containers"][0]


# What is done to which kind of the dev overlay or of its platform, and the words that must tell of it.
MUTATIONS: list[tuple[str, Callable[[Json], object], str]] = [
    ("Deployment", lambda o: server(o).update(image="moonflow-serve:latest"), "no fixed image"),
    ("Deployment", lambda o: server(o).update(image="moonflow-serve"), "no fixed image"),
    ("Deployment", lambda o: server(o)["resources"]["limits"].pop("memory"), "no limits for memory"),
    ("Deployment", lambda o: server(o)["resources"]["requests"].pop("cpu"), "no requests for cpu"),
    ("Deployment", lambda o: server(o)["securityContext"].update(privileged=True), "is privileged"),
    ("Deployment", lambda o: server(o)["securityContext"].pop("allowPrivilegeEscalation"), "privilege escalation"),
    ("Deployment", lambda o: server(o)["securityContext"]["capabilities"].update(add=["IPC_LOCK"]), "capabilities"),
    ("Deployment", lambda o: server(o)["securityContext"].pop("readOnlyRootFilesystem"), "can write to its image"),
    ("Deployment", lambda o: pod(o)["securityContext"].pop("runAsUser"), "may run as root"),
    ("Deployment", lambda o: pod(o)["securityContext"].pop("seccompProfile"), "no seccomp profile"),
    ("Deployment", lambda o: pod(o).pop("automountServiceAccountToken"), "mounts a token"),
    ("Deployment", lambda o: pod(o).update(hostNetwork=True), "sets hostNetwork"),
    ("Deployment", lambda o: pod(o)["volumes"].append({"name": "x", "hostPath": {"path": "/"}}), "is the host's"),
    ("Deployment", lambda o: pod(o)["volumes"][0].update(emptyDir={}), "may fill the node"),
    ("Deployment", lambda o: server(o).pop("startupProbe"), "has no startupProbe"),
    ("Deployment", lambda o: server(o)["livenessProbe"].pop("timeoutSeconds"), "flapping default timeout"),
    ("Deployment", lambda o: server(o).update(env=[{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}]), "plain text"),
    ("PodDisruptionBudget", lambda o: o["spec"]["selector"].update(matchLabels={"a": "b"}), "no PodDisruptionBudget"),
    ("NetworkPolicy", lambda o: o["spec"].update(egress=[{}]), "no default deny"),
    ("ResourceQuota", lambda o: o.update(kind="ConfigMap"), "no ResourceQuota"),
    ("Namespace", lambda o: o["metadata"].pop("labels"), "pod security is not enforced"),
    ("ServiceAccount", lambda o: o.pop("automountServiceAccountToken"), "whether its token is mounted"),
    ("ConfigMap", lambda o: o.update(kind="Secret"), "secrets are not kept in Git"),
    ("Role", lambda o: o["rules"][0].update(verbs=["*"]), "wildcard"),
    ("Role", lambda o: o["rules"][-1].pop("resourceNames"), "may read every secret"),
    ("Role", lambda o: o["rules"][1]["resources"].append("pods/exec"), "can become someone else"),
]


@pytest.mark.parametrize(("kind", "change", "message"), MUTATIONS, ids=[f"{m[0]}: {m[2]}" for m in MUTATIONS])
def test_a_broken_rule_is_found(kind: str, change: Callable[[Json], object], message: str) -> None:
    mutated = copy.deepcopy(list(objects("dev/platform" if kind == "Role" else "dev")))
    # The first of its kind; of the network policies that is the default deny.
    change(next(o for o in mutated if o["kind"] == kind and o["metadata"]["name"] not in ("dns", "endpoint", "store")))
    found = violations(mutated)
    assert found and all(message in line for line in found), found


def test_a_runtime_leaves_the_resources_to_its_train_jobs() -> None:
    mutated = copy.deepcopy(list(objects("dev/platform")))
    runtime = next(o for o in mutated if o["kind"] == "ClusterTrainingRuntime")
    ((_, template),) = pod_templates(runtime)
    template["spec"]["containers"][0]["resources"] = {"limits": {"cpu": "1"}}
    (line,) = violations(mutated)
    assert "container node names resources" in line


def test_only_an_account_with_rights_gets_a_token() -> None:
    mutated = copy.deepcopy(list(objects("dev/platform")))
    sweep = next(o for o in mutated if o["kind"] == "CronJob")
    ((_, template),) = pod_templates(sweep)
    template["spec"]["serviceAccountName"] = "moonflow-train"
    (line,) = violations(mutated)
    assert "CronJob moonflow/moonflow-sweep: mounts a token" in line


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "ClusterTrainingRuntime"])
def test_a_pod_in_the_namespace_of_the_profile_that_would_get_a_sidecar_is_found(kind: str) -> None:
    mutated = copy.deepcopy([o for o in objects("dev/platform") if o["kind"] == kind])
    for o in mutated:
        for _, template in pod_templates(o):
            template["metadata"]["labels"].pop("sidecar.istio.io/inject")
    told = [line for line in violations(mutated) if "sidecar" in line]
    assert len(told) == len(mutated) and all("pods get a sidecar of Istio" in line for line in told)


@pytest.mark.parametrize("role", ["leaderTemplate", "workerTemplate"])
def test_both_templates_of_a_group_are_looked_at(role: str) -> None:
    mutated = copy.deepcopy(list(objects("prod")))
    group = next(o for o in mutated if o["kind"] == "LeaderWorkerSet")
    group["spec"]["leaderWorkerTemplate"][role]["spec"]["initContainers"][0]["image"] = "moonflow-serve:latest"
    (line,) = violations(mutated)
    assert role.removesuffix("Template") in line and "no fixed image" in line
