"""`moonflow doctor --cluster` against an API server that counts what would change something."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from model.boundary.errors import MoonflowError
from pipelines.cli import app
from pipelines.doctor_cluster import CRDS, examine_cluster
from tests.manifests.overlays import objects
from tests.pipelines.api_server import REVIEWS, FakeApi, Json, serving

NAMESPACED = "/api/v1/namespaces/moonflow"
KUEUE = "/apis/kueue.x-k8s.io/v1beta2"
RUNTIMES = "/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes"
CRON_JOBS = "/apis/batch/v1/namespaces/moonflow/cronjobs"
CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
CONTROLLER = "/api/v1/namespaces/kubeflow/configmaps/workflow-controller-configmap"


def path(o: Json) -> str | None:
    """Where the API server keeps an object of our platform."""
    name, at = o["metadata"]["name"], f"{NAMESPACED}/"
    return {
        "ConfigMap": f"{at}configmaps/{name}",
        "ServiceAccount": f"{at}serviceaccounts/{name}",
        "Namespace": NAMESPACED,
        "LocalQueue": f"{KUEUE}/namespaces/moonflow/localqueues/{name}",
        "ClusterQueue": f"{KUEUE}/clusterqueues/{name}",
        "ClusterTrainingRuntime": f"{RUNTIMES}/{name}",
        "CronJob": f"{CRON_JOBS}/{name}",
    }.get(o["kind"])


def policy(name: str) -> Json:
    defaults = f"spec: {{templateDefaults: {{retryStrategy: {{limit: '2', retryPolicy: {name}}}}}}}"
    return {"metadata": {}, "data": {"workflowDefaults": defaults}}


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


@pytest.fixture
def cluster() -> FakeApi:
    """What a cluster holds after dev's platform and the Secrets were applied."""
    there = {at: copy.deepcopy(o) for o in objects("dev/platform") if (at := path(o))}
    there[NAMESPACED]["metadata"]["ownerReferences"] = [{"kind": "Profile", "name": "moonflow"}]
    for crd, version, *_ in CRDS:
        there[f"{CRD}/{crd}"] = {"metadata": {}, "spec": {"versions": [{"name": version, "served": True}]}}
    for secret in ("moonflow-store", "moonflow-mlflow", "moonflow-server-keys", "moonflow-git", "moonflow-signing"):
        there[f"{NAMESPACED}/secrets/{secret}"] = {"metadata": {"name": secret}, "data": {"key": "dmFsdWU="}}
    for name in ("kfp-launcher", "moonflow-signing-public"):
        there[f"{NAMESPACED}/configmaps/{name}"] = {"metadata": {"name": name}, "data": {}}
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    there[CLASSES] = {"items": [{"metadata": {"name": "local-path", "annotations": default}}]}
    there |= {"/version": {"gitVersion": "v1.36.2"}, CONTROLLER: policy("Always")}
    there["/apis/kubeflow.org/v1/profiles/moonflow"] = {"metadata": {"name": "moonflow"}}
    return FakeApi(there)


def told(cluster: FakeApi, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[bool, list[str]]:
    """Whether nothing needed is missing; the rows of what is not well, and the last line."""
    console = Console(record=True, width=400, file=io.StringIO())
    with serving(cluster, folder) as kubeconfig:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        well = examine_cluster("moonflow", console)
    assert not cluster.changes
    rows = [" ".join(line.split()) for line in console.export_text().splitlines()]
    return well, [row for row in rows if row.startswith(("missing", "optional", "fix first", "ready"))]


def test_a_cluster_with_all_that_a_run_needs_is_ready(
    cluster: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told(cluster, tmp_path, monkeypatch) == (True, ["ready: moonflow submit --namespace moonflow"])
    assert {user for user, _ in cluster.reviews} == {"system:serviceaccount:moonflow:moonflow-step"}
    asked = [right for _, right in cluster.reviews]
    assert {"namespace": "moonflow", "group": "", "resource": "pods", "subresource": "log", "verb": "get"} in asked
    jobs = {"namespace": "moonflow", "group": "trainer.kubeflow.org", "resource": "trainjobs"}
    assert {**jobs, "verb": "create"} in asked


def test_values_of_secrets_are_not_asked_for(cluster: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told(cluster, tmp_path, monkeypatch)
    secrets = {at: accept for at, accept in cluster.accepted.items() if "/secrets/" in at}
    assert len(secrets) == 5 and all("as=PartialObjectMetadata" in accept for accept in secrets.values())


def resources(c: FakeApi) -> None:
    (job,) = c.objects[f"{RUNTIMES}/moonflow-torchrun"]["spec"]["template"]["spec"]["replicatedJobs"]
    job["template"]["spec"]["template"]["spec"]["containers"][0]["resources"] = {"limits": {"cpu": "1"}}


def inactive(c: FakeApi) -> None:
    condition = {"type": "Active", "status": "False", "message": "ClusterQueue is inactive"}
    c.objects[f"{KUEUE}/namespaces/moonflow/localqueues/train"]["status"] = {"conditions": [condition]}


@pytest.mark.parametrize(("change", "row"), [
    (lambda c: c.objects.pop(f"{CRD}/jobsets.jobset.x-k8s.io"), "missing jobsets.jobset.x-k8s.io not found install"),
    (lambda c: c.objects[f"{CRD}/localqueues.kueue.x-k8s.io"]["spec"]["versions"][0].update(name="v1beta1"),
     "missing localqueues.kueue.x-k8s.io serves v1beta1 install Kueue with its integrations for TrainJobs and pods"),
    (lambda c: c.objects.pop("/apis/kubeflow.org/v1/profiles/moonflow"), "missing Profile moonflow not found create"),
    (lambda c: c.objects[NAMESPACED]["metadata"].pop("ownerReferences"),
     "missing namespace moonflow found, but its Profile does not own it the Profile's controller refuses"),
    (lambda c: c.objects[f"{NAMESPACED}/configmaps/moonflow"]["data"].pop("MOONFLOW_STORE"),
     "missing ConfigMap moonflow: settings lacks MOONFLOW_STORE name them in platform/kustomization.yaml"),
    (lambda c: c.objects.pop(f"{NAMESPACED}/secrets/moonflow-store"), "optional Secret moonflow-store not found"),
    (lambda c: c.objects.pop(f"{KUEUE}/namespaces/moonflow/localqueues/rollout"), "missing LocalQueue rollout not"),
    (inactive, "missing LocalQueue train not active: ClusterQueue is inactive fix what"),
    (lambda c: c.objects.pop(f"{RUNTIMES}/moonflow-torchrun"), "missing ClusterTrainingRuntime moonflow-torchrun"),
    (resources, "missing ClusterTrainingRuntime moonflow-torchrun its container node names resources remove them"),
    (lambda c: c.objects[CLASSES]["items"].clear(), "missing default StorageClass none: the volumes of"),
    (lambda c: c.objects.pop(f"{NAMESPACED}/serviceaccounts/moonflow-train"), "missing ServiceAccount moonflow-train"),
    (lambda c: c.objects.pop(f"{CRON_JOBS}/moonflow-sweep"), "optional CronJob moonflow-sweep not found"),
    (lambda c: c.denied.add(("delete", "trainjobs")), "missing rights of moonflow-step may not delete trainjobs"),
    (lambda c: c.forbidden.add(REVIEWS), "optional rights of moonflow-step the Kubernetes API at http"),
    (lambda c: c.forbidden.add(CLASSES), "optional default StorageClass the Kubernetes API at http"),
    (lambda c: c.objects.update({CONTROLLER: policy("OnError")}),
     "optional retries of a step retryPolicy OnError: a lost pod is repeated, a failed step is not"),
    (lambda c: c.objects.pop(CONTROLLER), "optional retries of a step unknown: there is no ConfigMap"),
])  # fmt: skip
def test_each_lack_is_one_row_that_says_how_to_fix_it(
    change: Callable[[FakeApi], object], row: str, cluster: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(cluster)
    well, rows = told(cluster, tmp_path, monkeypatch)
    assert len(rows) == 2 and rows[0].startswith(row), rows
    assert well == row.startswith("optional") and rows[1].startswith("ready" if well else "fix first")


def test_no_cluster_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(MoonflowError, match="no cluster is known .* name a kubeconfig in KUBECONFIG"):
        examine_cluster("moonflow", Console())


def test_the_command_ends_with_1_when_something_is_missing(
    cluster: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.objects.pop(CLASSES)
    with serving(cluster, tmp_path) as kubeconfig:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        ended = CliRunner().invoke(app, ["doctor", "--cluster"])
    assert ended.exit_code == 1 and "default StorageClass" in ended.output
