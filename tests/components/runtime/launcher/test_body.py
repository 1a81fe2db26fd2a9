from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.prepare_data.config import Config
from components.runtime.launcher.body import RUN, job_name, train_job
from components.runtime.launcher.placement import Placement
from components.runtime.launcher.work import StepWork
from components.runtime.steps import STEPS
from model.boundary.errors import MoonflowError
from pipelines.profile import load_profile
from tests.components.runtime.launcher.crd import merged_resources, validate_train_job
from tests.manifests.overlays import named
from tests.manifests.policy import pod_templates

LARGE = {
    "launcher": "trainjob",
    "image": "moonflow-train@sha256:" + "0" * 64,
    "cpu": "96",
    "memory": "1800Gi",
    "accelerators": 8,
    "nodes": 32,
    "processes": 8,
    "pool": "gpu-train",
    "shared_memory": "256Gi",
    "rdma": 8,
    "queue": "train",
    "priority": "moonflow-train",
    "runtime": "moonflow-deepspeed",
    "deadline_hours": 720.0,
}
SMALL = {"launcher": "trainjob", "image": "moonflow-train:0.1.0"}


def made(values: dict[str, Any], **work: Any) -> dict[str, Any]:
    placement = Placement.parse(values, "test")
    return train_job(
        StepWork(**({"run_id": "r", "step": "parl", "config": Config(), "inputs": {}} | work)), placement, "ns"
    )


@pytest.mark.parametrize("values", [SMALL, LARGE, {**LARGE, "rdma": 0, "accelerator": "amd.com/gpu"}])
def test_bodies_are_what_the_crd_allows(values: dict[str, Any]) -> None:
    validate_train_job(made(values))


JOBS = [
    (profile, overlay, step)
    for profile, overlay in (("small", "dev/platform"), ("k25", "prod/platform"))
    for step, placement in load_profile(profile).tasks.items()
    if placement.launcher == "trainjob"
]


@pytest.mark.parametrize(("profile", "overlay", "step"), JOBS)
def test_a_job_gets_what_its_placement_asks_for_and_nothing_else(profile: str, overlay: str, step: str) -> None:
    """Trainer 2.3 merges what the runtime names into what the job asks for; 2.2 replaced it."""
    resolved = load_profile(profile)
    placement = resolved.placement(step)
    body = train_job(StepWork("r", step, resolved.steps[step], {}), placement, "moonflow")
    runtime = named(overlay, "ClusterTrainingRuntime", placement.cluster_runtime)
    validate_train_job(body, runtime)
    devices = {placement.accelerator: placement.accelerators, placement.rdma_resource: placement.rdma}
    wanted = {name: str(number) for name, number in devices.items() if number} | {"memory": placement.memory}
    assert merged_resources(body, runtime) == {"requests": wanted | {"cpu": placement.cpu}, "limits": wanted}


@pytest.mark.parametrize(("profile", "overlay", "step"), JOBS)
def test_a_runtime_with_resources_of_its_own_would_have_the_job_refused(profile: str, overlay: str, step: str) -> None:
    resolved = load_profile(profile)
    placement = resolved.placement(step)
    body = train_job(StepWork("r", step, resolved.steps[step], {}), placement, "moonflow")
    runtime = copy.deepcopy(named(overlay, "ClusterTrainingRuntime", placement.cluster_runtime))
    ((_, template),) = pod_templates(runtime)
    template["spec"]["containers"][0]["resources"] = {"limits": {"cpu": "1", "memory": "4Gi"}}
    with pytest.raises(AssertionError, match=r"must be less than or equal to cpu limit of 1"):
        validate_train_job(body, runtime)


def test_the_check_sees_what_the_crd_forbids() -> None:
    body = made(LARGE)
    body["spec"]["podTemplateOverrides"] = []
    with pytest.raises(Exception, match="podTemplateOverrides"):
        validate_train_job(body)


def test_everything_of_the_placement_is_in_the_body() -> None:
    body = made(LARGE)
    spec = body["spec"]
    labels = body["metadata"]["labels"]
    assert (labels["kueue.x-k8s.io/queue-name"], labels["kueue.x-k8s.io/priority-class"]) == ("train", "moonflow-train")
    assert spec["runtimeRef"]["name"] == "moonflow-deepspeed" and spec["activeDeadlineSeconds"] == 720 * 3600
    trainer = spec["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"], trainer["image"]) == (32, 8, LARGE["image"])
    assert trainer["command"] == [
        "python",
        "-m",
        "components.runtime.launcher.group",
        "-m",
        "components.runtime.launcher.worker",
    ]
    devices = {"nvidia.com/gpu": "8", "rdma/hca": "8"}
    assert trainer["resourcesPerNode"]["limits"] == {"memory": "1800Gi", **devices}
    assert trainer["resourcesPerNode"]["requests"] == {"cpu": "96", "memory": "1800Gi", **devices}
    (job,) = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "moonflow-train" and pod["nodeSelector"] == {"moonflow.dev/pool": "gpu-train"}
    assert pod["tolerations"][0]["value"] == "gpu-train"
    assert pod["volumes"] == [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "256Gi"}}]
    assert pod["containers"][0]["volumeMounts"] == [{"name": "shm", "mountPath": "/dev/shm"}]


def test_the_runtime_class_is_that_of_a_runtime_of_its_own() -> None:
    body = made(SMALL | {"runtime_class": "gvisor"})
    validate_train_job(body)
    assert body["spec"]["runtimeRef"]["name"] == "moonflow-torchrun-gvisor"
    assert made(SMALL)["spec"]["runtimeRef"]["name"] == "moonflow-torchrun"


def test_one_rank_runs_without_torchrun() -> None:
    assert made(SMALL)["spec"]["trainer"]["command"] == ["python", "-m", "components.runtime.launcher.worker"]


def test_secrets_are_references_and_settings_come_from_the_config_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("MLFLOW_RUN_ID", "abc")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "hunter3")
    body = made(SMALL)
    assert "hunter2" not in str(body) and "hunter3" not in str(body)
    env = {row["name"]: row for row in body["spec"]["trainer"]["env"]}
    assert env["AWS_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"]["name"] == "moonflow-store"
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        assert env[name]["valueFrom"]["secretKeyRef"] == {"name": "moonflow-mlflow", "key": name, "optional": True}
    for name in ("MOONFLOW_STORE", "MLFLOW_PUBLIC_URI"):  # the latter, or its log links to where no browser gets
        assert env[name]["valueFrom"]["configMapKeyRef"] == {"name": "moonflow", "key": name, "optional": True}
    assert env["MLFLOW_RUN_ID"]["value"] == "abc" and env["MOONFLOW_STEP"]["value"] == "parl"


@pytest.mark.parametrize(("step", "keys"), [
    ("joint_rl", ["MOONFLOW_ENGINE_KEY", "MOONFLOW_JUDGE_KEY"]), ("visual_rl", ["MOONFLOW_ENGINE_KEY"]),
    ("parl", ["MOONFLOW_ENGINE_KEY"]), ("mid_train", []),
])  # fmt: skip
def test_a_job_gets_the_keys_of_the_servers_that_its_step_may_ask(
    step: str, keys: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in keys:
        monkeypatch.setenv(name, "hunter2")
    body = made(SMALL, step=step)
    ours = ("MOONFLOW_ENGINE_KEY", "MOONFLOW_JUDGE_KEY")
    rows = [row for row in body["spec"]["trainer"]["env"] if row["name"] in ours]
    reference = {"name": "moonflow-server-keys", "optional": True}
    assert rows == [{"name": key, "valueFrom": {"secretKeyRef": {**reference, "key": key}}} for key in keys]
    assert "hunter2" not in str(body)


def test_a_job_carries_the_pipeline_run_that_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFP_RUN_ID", raising=False)
    assert RUN not in made(SMALL)["metadata"]["labels"]
    monkeypatch.setenv("KFP_RUN_ID", "8e4a5a51-0a2c-4f0c-9f0e-0d4f2e9c1b77")
    body = made(SMALL)
    assert body["metadata"]["labels"][RUN] == "8e4a5a51-0a2c-4f0c-9f0e-0d4f2e9c1b77"
    validate_train_job(body)


@pytest.mark.parametrize("profile", ["small", "k25"])
@pytest.mark.parametrize("step", ["visual_rl", "joint_rl", "parl", "evaluate"])
def test_what_runs_model_written_programs_is_a_job_without_a_token(profile: str, step: str) -> None:
    resolved = load_profile(profile)
    placement = resolved.placement(step)
    assert placement.launcher == "trainjob" and placement.nodes * placement.processes == 1
    body = train_job(StepWork("r", step, resolved.steps[step], {}), placement, "moonflow")
    validate_train_job(body)
    labels, trainer = body["metadata"]["labels"], body["spec"]["trainer"]
    assert labels["kueue.x-k8s.io/queue-name"] == "rollout"
    assert labels["kueue.x-k8s.io/priority-class"] == "moonflow-rollout"
    assert body["spec"]["runtimeRef"]["name"] == "moonflow-torchrun"
    assert trainer["command"] == ["python", "-m", "components.runtime.launcher.worker"]
    assert trainer["image"] == resolved.run.train_image
    (job,) = body["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "moonflow-train", "the account that has no token and no role"
    assert pod["nodeSelector"] == {"moonflow.dev/pool": "gpu-rollout"}


def test_a_placement_that_means_nothing_is_refused() -> None:
    with pytest.raises(MoonflowError, match=r"\[task.parl\] image is empty"):
        made({"launcher": "trainjob"})
    with pytest.raises(MoonflowError, match="priority is Kueue's"):
        made({**SMALL, "priority": "moonflow-train"})


@given(st.text(min_size=1, max_size=200), st.sampled_from(STEPS))
def test_any_run_id_gives_a_valid_name(run_id: str, step: str) -> None:
    body = made(SMALL, run_id=run_id, step=step)
    assert body["metadata"]["name"] == job_name(run_id, step)
    validate_train_job(body)


def test_names_differ_where_their_readable_part_does_not() -> None:
    long = "a" * 100
    names = {job_name(run, "parl") for run in ("a_b", "a-b", "A-B", long, long + "a")}
    assert len(names) == 5
    assert job_name("run-1", "parl") == job_name("run-1", "parl")


def test_the_digest_follows_parameters_and_inputs() -> None:
    digests = {
        StepWork("r", "parl", Config(), {}).sha256,
        StepWork("r", "parl", Config(seed=1), {}).sha256,
        StepWork("r", "parl", Config(), {"data": "s3://a/b"}).sha256,
        StepWork("r", "promote", Config(), {}).sha256,
    }
    assert len(digests) == 4
