"""The platform of a cluster: the names that launcher and pipeline use, room for the profiles, services that start."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from decimal import Decimal
from fnmatch import fnmatch
from pathlib import Path

import mlflow.cli
import pytest
from kubernetes.utils.quantity import parse_quantity

from components.runtime.launcher import body, sweep
from components.runtime.launcher.placement import Placement
from components.runtime.launcher.worker import REFUSED
from pipelines.placement import SETTINGS
from pipelines.profile import load_profile
from tests.components.runtime.launcher.crd import goes_on
from tests.manifests.overlays import ENVIRONMENTS, label, named, objects
from tests.manifests.policy import pod_templates

SHUTDOWN_TIMEOUT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
WAVE = "argocd.argoproj.io/sync-wave"
PLATFORMS = [f"{environment}/platform" for environment in ENVIRONMENTS]


# AWS S3 needs no endpoint, promotions without a forge go to the main branch, and the wait has a default.
OPTIONAL = {"AWS_ENDPOINT_URL_S3", "MOONFLOW_FORGE", "MOONFLOW_MLFLOW_WAIT_S"}


@pytest.mark.parametrize("overlay", PLATFORMS)
def test_settings_are_those_that_tasks_read(overlay: str) -> None:
    settings = named(overlay, "ConfigMap", body.CONFIG_MAP)
    assert settings["metadata"]["namespace"] == "moonflow"
    assert set(SETTINGS) - OPTIONAL <= settings["data"].keys() <= set(SETTINGS)
    assert ("AWS_ENDPOINT_URL_S3" in settings["data"]) == (not overlay.startswith("prod")), "the store in the cluster"


@pytest.mark.parametrize("overlay", PLATFORMS)
def test_each_runtime_is_there_once_more_under_gvisor(overlay: str) -> None:
    for runtime in ("moonflow-torchrun", "moonflow-deepspeed"):
        placement = Placement.model_validate({"launcher": "trainjob", "runtime": runtime, "runtime_class": "gvisor"})
        (plain,), (confined,) = (
            [pod for _, pod in pod_templates(named(overlay, "ClusterTrainingRuntime", each))]
            for each in (runtime, placement.cluster_runtime)
        )
        assert confined["spec"].pop("runtimeClassName") == "gvisor"
        assert "runtimeClassName" not in plain["spec"] and confined == plain


@pytest.mark.parametrize("overlay", PLATFORMS)
def test_runtimes_are_what_the_launcher_patches(overlay: str) -> None:
    for name in ("moonflow-torchrun", "moonflow-deepspeed"):
        runtime = named(overlay, "ClusterTrainingRuntime", name)
        assert runtime["spec"]["mlPolicy"]["torch"] == {}, "the launcher's command is torchrun"
        ((role, template),) = pod_templates(runtime)
        (container,) = template["spec"]["containers"]
        assert (role, container["name"]) == (body.NODE, body.NODE)
        job = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]
        assert job["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
        assert job["spec"]["backoffLimit"] == 0, "one rank alone cannot come back"
        assert template["spec"]["serviceAccountName"] == body.SERVICE_ACCOUNT
        assert container["image"] == "moonflow-train:0.1.0"
        kills = next(int(row["value"]) for row in container["env"] if row["name"] == SHUTDOWN_TIMEOUT)
        assert 30 < kills < template["spec"]["terminationGracePeriodSeconds"], "or the ranks have half a minute to save"
        # A placement's shared memory is a volume of this name at this path, so that it replaces ours.
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
        assert "shm" in {volume["name"] for volume in template["spec"]["volumes"]}


def test_the_launchers_account_may_do_what_it_does_and_no_more() -> None:
    rules = named("dev/platform", "Role", "moonflow-step")["rules"]
    allowed = {(group, resource, verb) for r in rules for group in r["apiGroups"] for resource in r["resources"]
               for verb in r["verbs"]}  # fmt: skip
    jobs = {(body.GROUP, body.PLURAL, verb) for verb in ("create", "delete", "get", "list", "patch", "watch")}
    assert jobs <= allowed
    assert {verb for group, _, verb in allowed if group == body.GROUP} == {verb for _, _, verb in jobs}
    assert {("", "pods", "list"), ("", "pods", "get"), ("", "pods/log", "get"), ("", "events", "list")} <= allowed
    assert {verb for group, resource, verb in allowed if resource == "workflows"} == {"get"}
    assert {verb for group, resource, verb in allowed if resource == "workloads"} == {"list"}
    changed = {resource for group, resource, verb in allowed if verb in ("update", "patch")}
    assert changed == {"workflowtaskresults", body.PLURAL}
    account = named("dev/platform", "RoleBinding", "moonflow-step")["subjects"]
    assert account == [{"kind": "ServiceAccount", "name": "moonflow-step", "namespace": "moonflow"}]
    assert not named("dev/platform", "ServiceAccount", "moonflow-train")["automountServiceAccountToken"]


@pytest.mark.parametrize("overlay", PLATFORMS)
@pytest.mark.parametrize("suffix", ["", "-gvisor"])
@pytest.mark.parametrize("name", ["moonflow-torchrun", "moonflow-deepspeed"])
def test_what_the_worker_refuses_is_not_tried_again(overlay: str, name: str, suffix: str) -> None:
    runtime = copy.deepcopy(named(overlay, "ClusterTrainingRuntime", name + suffix))
    assert not goes_on(runtime, REFUSED, restarts=0)
    for code in (1, 137, 143):  # a missing service, a kill, a preemption
        assert goes_on(runtime, code, restarts=2) and not goes_on(runtime, code, restarts=10)
    del runtime["spec"]["template"]["spec"]["failurePolicy"]["rules"]
    assert goes_on(runtime, REFUSED, restarts=0), "the policy is what ends it"


@pytest.mark.parametrize("overlay", PLATFORMS)
def test_the_sweeper_may_do_what_it_does_and_no_more(overlay: str) -> None:
    rules = named(overlay, "Role", "moonflow-sweep")["rules"]
    allowed = {(group, resource, verb) for r in rules for group in r["apiGroups"] for resource in r["resources"]
               for verb in r["verbs"]}  # fmt: skip
    assert allowed == {
        (body.GROUP, body.PLURAL, "list"), (body.GROUP, body.PLURAL, "delete"), ("argoproj.io", "workflows", "list")
    }  # fmt: skip
    job = named(overlay, "CronJob", "moonflow-sweep")["spec"]
    ((_, template),) = pod_templates(named(overlay, "CronJob", "moonflow-sweep"))
    (container,) = template["spec"]["containers"]
    assert container["command"] == ["python", "-m", sweep.__name__] and container["image"] == "moonflow-pipeline:0.1.0"
    binding = named(overlay, "RoleBinding", "moonflow-sweep")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "moonflow-sweep", "namespace": "moonflow"}]
    assert template["spec"]["serviceAccountName"] == "moonflow-sweep" and job["concurrencyPolicy"] == "Forbid"
    assert template["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"


def test_kueue_knows_every_pool_queue_and_priority_of_the_profiles() -> None:
    for profile, overlay in (("k25", "prod/platform"), ("small", "dev/platform")):
        kinds: dict[str, set[str]] = {}
        for object_ in objects(overlay):
            kinds.setdefault(object_["kind"], set()).add(object_["metadata"]["name"])
        for step, task in load_profile(profile).tasks.items():
            assert not task.pool or task.pool in kinds["ResourceFlavor"], step
            assert not task.queue or task.queue in kinds["LocalQueue"], step
            assert not task.priority or task.priority in kinds["WorkloadPriorityClass"], step
            assert task.launcher != "trainjob" or task.runtime in kinds["ClusterTrainingRuntime"], step


@pytest.mark.parametrize(("profile", "overlay"), [("k25", "prod/platform"), ("small", "dev/platform")])
def test_the_queue_and_the_quota_have_room_for_every_step(profile: str, overlay: str) -> None:
    """A job larger than its flavor's quota would wait for ever and nobody would be told."""
    (group,) = named(overlay, "ClusterQueue")["spec"]["resourceGroups"]
    quotas = {
        f["name"]: {r["name"]: parse_quantity(r["nominalQuota"]) for r in f["resources"]} for f in group["flavors"]
    }
    assert all(list(quota) == group["coveredResources"] for quota in quotas.values()), "Kueue wants the same order"
    ceiling = {name: parse_quantity(value) for name, value in named(overlay, "ResourceQuota")["spec"]["hard"].items()}
    queued = 0
    for step, task in load_profile(profile).tasks.items():
        asked: dict[str, Decimal] = {
            "cpu": parse_quantity(task.cpu), "memory": parse_quantity(task.memory),
            task.accelerator: Decimal(task.accelerators), task.rdma_resource: Decimal(task.rdma),
        }  # fmt: skip
        for name, amount in asked.items():
            total = amount * task.nodes
            if task.queue:
                queued += 1
                assert not amount or total <= quotas[task.pool][name], f"{step}: {total} of {name} in {task.pool}"
            if f"requests.{name}" in ceiling:
                assert total <= ceiling[f"requests.{name}"], f"{step}: {total} of {name}"
    assert queued


@pytest.mark.parametrize("overlay", PLATFORMS)
def test_argo_cd_follows_the_repository_that_promotion_commits_to(overlay: str) -> None:
    environment = overlay.split("/")[0]
    repository = named(overlay, "ConfigMap", "moonflow")["data"]["MOONFLOW_GITOPS_REPO"]
    by_hand = f"{environment}/argocd"
    project = named(by_hand, "AppProject")["spec"]
    assert project["sourceRepos"] == [repository]
    assert {"group": "", "kind": "Secret"} in project["namespaceResourceBlacklist"]
    paths = {"moonflow-platform": (overlay, "moonflow"), "moonflow-endpoint": (environment, f"moonflow-{environment}")}
    for name, (path, namespace) in paths.items():
        spec = named(by_hand, "Application", name)["spec"]
        assert (spec["source"]["repoURL"], spec["source"]["path"]) == (repository, f"overlays/{path}")
        assert (spec["source"]["targetRevision"], spec["destination"]["namespace"]) == ("main", namespace)
    cluster_kinds = {(o["apiVersion"].rpartition("/")[0], o["kind"]) for o in objects(overlay)
                     if "namespace" not in o["metadata"]}  # fmt: skip
    assert cluster_kinds == {(k["group"], k["kind"]) for k in project["clusterResourceWhitelist"]}


@pytest.mark.parametrize("overlay", PLATFORMS)
def test_the_namespace_is_synced_before_all_that_lives_in_it_and_leaves_a_wave_for_the_profile(overlay: str) -> None:
    waves = {label(o): int(o["metadata"].get("annotations", {}).get(WAVE, "0")) for o in objects(overlay)}
    namespace = waves.pop(label(named(overlay, "Namespace")))
    assert namespace == -1 and min(waves.values()) >= 0


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_endpoint_comes_after_the_platform(environment: str) -> None:
    applications = (named(f"{environment}/argocd", "Application", f"moonflow-{n}") for n in ("platform", "endpoint"))
    first, second = (int(o["metadata"]["annotations"][WAVE]) for o in applications)
    assert first < second


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_push_to_the_repository_cannot_widen_what_a_push_may_do(environment: str) -> None:
    """Argo CD must not sync the project that limits it, nor be allowed to."""
    project = named(f"{environment}/argocd", "AppProject")["spec"]
    synced = [o for overlay in (environment, f"{environment}/platform") for o in objects(overlay)]
    assert not [label(o) for o in synced if o["kind"] in ("AppProject", "Application", "ApplicationSet")]
    for o in synced:
        if "namespace" in o["metadata"]:
            namespace = o["metadata"]["namespace"]
            assert any(fnmatch(namespace, d["namespace"]) for d in project["destinations"]), label(o)
    assert not any(fnmatch("argocd", d["namespace"]) for d in project["destinations"])
    for kind in ("AppProject", "Application", "ApplicationSet"):
        refused = project["namespaceResourceBlacklist"]
        assert any(row["group"] == "argoproj.io" and fnmatch(kind, row["kind"]) for row in refused), kind
    followed = {o["spec"]["source"]["path"] for o in objects(f"{environment}/argocd") if o["kind"] == "Application"}
    assert followed == {f"overlays/{environment}", f"overlays/{environment}/platform"}


def test_addresses_in_the_settings_are_services_of_the_cluster() -> None:
    settings = named("dev/platform", "ConfigMap", "moonflow")["data"]
    for key, name, port in (("AWS_ENDPOINT_URL_S3", "seaweedfs", 8333), ("MLFLOW_TRACKING_URI", "mlflow", 5000)):
        assert settings[key] == f"http://{name}.moonflow:{port}"
        assert port in {p["port"] for p in named("dev/platform", "Service", name)["spec"]["ports"]}
    (store,) = (o for o in objects("dev") if o["kind"] == "ConfigMap" and o["metadata"]["name"].startswith("store-"))
    assert store["data"]["AWS_ENDPOINT_URL_S3"] == settings["AWS_ENDPOINT_URL_S3"]
    assert store["data"]["MOONFLOW_STORE"] == settings["MOONFLOW_STORE"]
    # MLflow refuses requests to a name that it was not told.
    (container,) = named("dev/platform", "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"]
    (hosts,) = (a for a in container["args"] if a.startswith("--allowed-hosts="))
    assert "mlflow.moonflow:*" in hosts.split("=", 1)[1].split(",")


def test_services_are_started_with_options_that_they_have() -> None:
    weed = subprocess.run([Path(sys.executable).with_name("weed"), "mini", "-h"], capture_output=True, text=True)
    known = {
        "seaweedfs": set(re.findall(r"^ +-([\w.]+)", weed.stdout + weed.stderr, re.MULTILINE)),
        "mlflow": {name.lstrip("-") for option in mlflow.cli.server.params for name in option.opts},
    }
    for kind, name in (("StatefulSet", "seaweedfs"), ("Deployment", "mlflow")):
        (container,) = named("dev/platform", kind, name)["spec"]["template"]["spec"]["containers"]
        given = {argument.lstrip("-").split("=", 1)[0] for argument in container["args"]}
        assert len(given) > 5 and given <= known[name], name
