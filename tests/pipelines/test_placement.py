"""Where every task of every shipped profile lands, read from the compiled pipeline as Kubeflow reads it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.release import signing
from components.runtime.launcher.body import SERVER_KEYS
from components.runtime.launcher.placement import Placement
from components.runtime.steps import STEPS
from pipelines.compile import compile_ir
from pipelines.placement import QUEUED_SECONDS, SETTINGS, WAITING_POD
from pipelines.profile import Profile, load_profile
from tests.pipelines.shipped import SHIPPED, documents, tasks_of
from tests.pipelines.shipped import compiled as compiled_once

Spec = dict[str, Any]
ROOT = Path(__file__).parents[2]


def compiled(profile: Profile, folder: Path) -> tuple[Spec, Spec]:
    """(pipeline spec, platform settings by executor)."""
    compile_ir(profile, folder / "pipeline.yaml")
    spec, platform = documents(folder / "pipeline.yaml")
    return spec, by_executor(platform)


def by_executor(platform: Spec) -> Spec:
    settings: Spec = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return settings


@pytest.fixture(scope="module", params=SHIPPED)
def shipped(request: pytest.FixtureRequest) -> tuple[Profile, Spec, Spec]:
    spec, platform = compiled_once(request.param)
    return load_profile(request.param), spec, by_executor(platform)


def container_of(spec: Spec, step: str) -> Spec:
    return spec["deploymentSpec"]["executors"][f"exec-{step.replace('_', '-')}"]["container"]


def environment_of(spec: Spec, step: str) -> dict[str, str]:
    return {pair["name"]: pair["value"] for pair in container_of(spec, step).get("env", ())}


def step_of(task: str) -> str:
    """KFP numbers the further tasks of a component that a DAG names several times: rl_arm, rl_arm_2, ..."""
    return re.sub(r"_\d+$", "", task)


def test_a_component_that_is_named_several_times_is_placed_the_same_each_time() -> None:
    spec, platform = compiled_once("claims-rl")
    settings = by_executor(platform)
    arms = [name for name in tasks_of(spec) if step_of(name) == "rl_arm"]
    assert len(arms) == 5
    for name in arms:
        assert settings[f"exec-{name.replace('_', '-')}"] == settings["exec-rl-arm"]
        assert container_of(spec, name) == container_of(spec, "rl_arm")


def test_every_task_says_caching_retry_and_deadline(shipped: tuple[Profile, Spec, Spec]) -> None:
    profile, spec, platform = shipped
    assert {step_of(task) for task in tasks_of(spec)} == set(profile.steps)
    for name, task in tasks_of(spec).items():
        step = step_of(name)
        seconds = profile.tasks[step].deadline_hours * 3600
        if profile.tasks[step].launcher == "trainjob":  # time in the queue is not the deadline's
            seconds += QUEUED_SECONDS
        assert task["cachingOptions"] == {}, "KFP's word for: not cached"
        # kfp leaves a count of 0 out; without a count the backend does not retry.
        assert task["retryPolicy"].get("maxRetryCount", 0) == profile.run.retries
        assert task["retryPolicy"]["backoffMaxDuration"] == f"{seconds:.0f}s"  # KFP's own limit is one hour
        assert int(platform[f"exec-{step.replace('_', '-')}"]["activeDeadlineSeconds"]) == seconds


def test_long_steps_may_be_retried_after_more_than_an_hour() -> None:
    for name in ("small", "k25"):
        profile = load_profile(name)
        assert profile.run.retries >= 3
        long = [step for step in STEPS if profile.tasks[step].accelerators and step != "serve"]
        assert len(long) == 9 and all(profile.tasks[step].deadline_hours >= 24 for step in long)


def test_the_tasks_own_pod_gets_what_the_profile_says(shipped: tuple[Profile, Spec, Spec]) -> None:
    profile, spec, platform = shipped
    for step, asked in profile.tasks.items():
        # What waits for a TrainJob asks for next to nothing: the TrainJob's pods get the placement.
        waits = asked.launcher == "trainjob"
        pod = WAITING_POD if waits else asked
        container, settings = container_of(spec, step), platform[f"exec-{step.replace('_', '-')}"]
        assert container["image"] == (profile.run.image if waits else profile.placement(step).image)
        resources = container["resources"]
        assert resources["resourceMemoryRequest"] == resources["resourceMemoryLimit"] == pod.memory
        assert resources["resourceCpuRequest"] == pod.cpu
        if pod.accelerators:
            accelerator = resources["accelerator"]
            assert (accelerator["resourceType"], int(accelerator["resourceCount"])) == (
                pod.accelerator,
                pod.accelerators,
            )
        else:
            assert "accelerator" not in resources
        if pod.pool:
            assert settings["nodeSelector"]["labels"] == {"moonflow.dev/pool": pod.pool}
            toleration = {"key": "moonflow.dev/pool", "operator": "Equal", "value": pod.pool, "effect": "NoSchedule"}
            assert settings["tolerations"] == [toleration]
        else:
            assert "nodeSelector" not in settings and "tolerations" not in settings
        labels = {"kueue.x-k8s.io/queue-name": pod.queue, "kueue.x-k8s.io/priority-class": pod.priority}
        assert settings.get("podMetadata", {}).get("labels", {}) == {
            key: value for key, value in labels.items() if value
        }
        mount = {
            "volumeName": "shared-memory",
            "mountPath": "/dev/shm",
            "medium": "Memory",
            "sizeLimit": pod.shared_memory,
        }
        assert settings.get("emptyDirMounts", []) == ([mount] if pod.shared_memory else [])


def test_the_placement_travels_to_the_launcher(shipped: tuple[Profile, Spec, Spec]) -> None:
    profile, spec, _ = shipped
    for step, asked in profile.tasks.items():
        environment = environment_of(spec, step)
        if asked.launcher == "in-process":
            assert "MOONFLOW_PLACEMENT" not in environment
        else:
            told = Placement.model_validate_json(environment["MOONFLOW_PLACEMENT"])
            assert told == profile.placement(step) and told.image


def test_settings_and_keys_reach_every_task_by_reference(shipped: tuple[Profile, Spec, Spec]) -> None:
    profile, spec, platform = shipped
    for step in profile.steps:
        settings = platform[f"exec-{step.replace('_', '-')}"]
        (store,) = (s for s in settings["secretAsEnv"] if s["secretName"] == "moonflow-store")
        assert {p["envVar"] for p in store["keyToEnv"]} == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
        (mlflow,) = (s for s in settings["secretAsEnv"] if s["secretName"] == "moonflow-mlflow")
        assert {(p["secretKey"], p["envVar"]) for p in mlflow["keyToEnv"]} == {
            (f"MLFLOW_TRACKING_{key}",) * 2 for key in ("USERNAME", "PASSWORD", "TOKEN")
        }
        (values,) = settings["configMapAsEnv"]
        assert values["configMapName"] == "moonflow" and values["optional"]
        assert {p["envVar"] for p in values["keyToEnv"]} == set(SETTINGS)
        fields = {each["name"]: each["fieldPath"] for each in settings["fieldPathAsEnv"]}
        assert fields == dict.fromkeys(("MOONFLOW_RUN_ID", "KFP_RUN_ID"), "metadata.labels['pipeline/runid']")
        assert set(environment_of(spec, step)) <= {"MOONFLOW_PLACEMENT"}, "no value is written into the pipeline"


def test_each_key_reaches_only_the_steps_that_need_it(shipped: tuple[Profile, Spec, Spec]) -> None:
    profile, _, platform = shipped
    seen: dict[str, set[str]] = {}
    for step in profile.steps:
        settings = platform[f"exec-{step.replace('_', '-')}"]
        for source in (*settings["secretAsEnv"], *settings.get("secretAsVolume", ())):
            assert source["optional"]
            seen.setdefault(source["secretName"], set()).add(step)
        for volume in settings.get("secretAsVolume", ()):
            assert Path(volume["mountPath"]) == signing.MOUNTED[signing.KEY].parent
        for volume in settings.get("configMapAsVolume", ()):
            assert Path(volume["mountPath"]) == signing.MOUNTED[signing.PUBLIC_KEY].parent
            seen.setdefault(volume["configMapName"], set()).add(step)
    wanted = dict.fromkeys(("moonflow-store", "moonflow-mlflow"), set(profile.steps))
    if asking := {"visual_rl", "joint_rl", "parl", "evaluate", "serve"} & set(profile.steps):
        wanted["moonflow-server-keys"] = asking
    if "promote" in profile.steps:
        wanted["moonflow-git"] = {"promote", "serve"}
        wanted |= {"moonflow-signing": {"promote"}, "moonflow-signing-public": {"serve"}}
    assert seen == wanted


def test_only_joint_rl_gets_the_key_of_a_judge(shipped: tuple[Profile, Spec, Spec]) -> None:
    profile, _, platform = shipped
    for step in profile.steps:
        sources = platform[f"exec-{step.replace('_', '-')}"]["secretAsEnv"]
        given = [pair for source in sources if source["secretName"] == SERVER_KEYS for pair in source["keyToEnv"]]
        assert all(pair["secretKey"] == pair["envVar"] for pair in given)
        names = {"MOONFLOW_ENGINE_KEY", "MOONFLOW_JUDGE_KEY"} if step == "joint_rl" else {"MOONFLOW_ENGINE_KEY"}
        assert {pair["envVar"] for pair in given} in (set(), names)


def test_no_image_is_latest_or_without_a_tag(shipped: tuple[Profile, Spec, Spec]) -> None:
    profile, spec, _ = shipped
    images = {container_of(spec, step)["image"] for step in profile.steps}
    images |= {profile.placement(step).image for step in profile.steps}
    for image in images:
        name, _, tag = image.rpartition(":")
        assert name and tag and tag != "latest", image


@pytest.mark.parametrize("name", ["small", "k25"])
def test_profiles_for_a_cluster_use_its_pools_and_queues(name: str) -> None:
    tasks = load_profile(name).tasks
    for step in ("vit_pretrain", "joint_pretrain", "mid_train", "zero_vision_sft", "rejection_sft"):
        placement = tasks[step]
        assert (placement.launcher, placement.pool, placement.queue) == ("trainjob", "gpu-train", "train")
        assert placement.priority == "moonflow-train"
        assert placement.accelerators and placement.shared_memory
    for step in ("visual_rl", "joint_rl", "parl", "evaluate", "serve"):
        placement = tasks[step]
        launcher = "in-process" if step == "serve" else "trainjob"
        assert (placement.launcher, placement.pool, placement.queue) == (launcher, "gpu-rollout", "rollout")
        assert placement.priority == "moonflow-rollout" and placement.accelerators
    for step in ("prepare_data", "promote", "finish"):
        assert (tasks[step].pool, tasks[step].accelerators, tasks[step].queue) == ("cpu", 0, "")


def named(kind: str) -> set[str]:
    """Names of the base manifests' objects of a kind."""
    texts = [path.read_text() for path in (ROOT / "manifests" / "base").rglob("*.yaml")]
    objects = [each for text in texts for each in yaml.load_all(text, Loader=yaml.CSafeLoader) if each]
    return {each["metadata"]["name"] for each in objects if each.get("kind") == kind}


def test_the_manifests_have_every_name_that_the_profiles_use() -> None:
    used = [placement for name in SHIPPED for placement in load_profile(name).tasks.values()]
    assert {placement.queue for placement in used} - {""} == named("LocalQueue")
    assert {placement.priority for placement in used} - {""} == named("WorkloadPriorityClass")
    assert {placement.pool for placement in used} - {""} == named("ResourceFlavor")
    assert {placement.runtime for placement in used} == named("ClusterTrainingRuntime")
    for overlay in (ROOT / "manifests" / "overlays").glob("*/platform/kustomization.yaml"):
        (settings,) = yaml.safe_load(overlay.read_text())["configMapGenerator"]
        assert settings["name"] == "moonflow"
        assert {literal.partition("=")[0] for literal in settings["literals"]} <= set(SETTINGS), overlay


def test_the_released_shape_trains_on_several_nodes_over_rdma() -> None:
    tasks = load_profile("k25").tasks
    for step in ("vit_pretrain", "joint_pretrain", "mid_train", "zero_vision_sft", "rejection_sft"):
        assert tasks[step].nodes > 1 and tasks[step].rdma == 8 and tasks[step].processes == 8
        assert tasks[step].runtime == "moonflow-deepspeed"


@pytest.mark.parametrize("name", ["small", "k25"])
def test_two_names_give_every_task_an_image_of_ones_own_registry(name: str, tmp_path: Path) -> None:
    mine = ["run.image=example.org/pipeline:1", "run.train_image=example.org/train@sha256:" + "a" * 64]
    profile = load_profile(name, mine)
    spec, _ = compiled(profile, tmp_path)
    for step, asked in profile.tasks.items():
        pod, environment = container_of(spec, step)["image"], environment_of(spec, step)
        wanted = mine[1 if asked.accelerators else 0].partition("=")[2]
        if asked.launcher == "trainjob":
            assert pod == "example.org/pipeline:1"
            assert Placement.model_validate_json(environment["MOONFLOW_PLACEMENT"]).image == wanted
        else:
            assert pod == wanted


def test_a_step_without_an_image_of_its_own_is_launched_with_the_runs(tmp_path: Path) -> None:
    profile = load_profile("tiny", ["task.parl.launcher=ranks", "task.parl.processes=2", "run.image=example.org/x:1"])
    spec, _ = compiled(profile, tmp_path)
    told = Placement.model_validate_json(environment_of(spec, "parl")["MOONFLOW_PLACEMENT"])
    assert (told.image, told.processes) == ("example.org/x:1", 2)
    assert container_of(spec, "parl")["image"] == "example.org/x:1"
