"""The launcher against the REST protocol: what the cluster does is scripted, the client is the real one."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from components.prepare_data.config import Config
from components.runtime.launcher.body import RUN
from components.runtime.launcher.cluster import Cluster
from components.runtime.launcher.placement import Placement
from components.runtime.launcher.trainjob import run
from components.runtime.launcher.work import StepWork
from model.boundary.errors import MoonflowError
from model.train.stop import Terminated
from tests.components.runtime.launcher.fake_cluster import FakeCluster
from tests.components.runtime.launcher.rest import Fault
from tests.components.runtime.launcher.script import NAME, completes, fails, stored


@pytest.fixture
def stepping(fake: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """This process is a step's pod of the run ``run-x``; the reference to its Workflow."""
    reference: dict[str, str] = fake.workflow("run-x")
    fake.own_pod("step-pod", metadata={"ownerReferences": [reference]})
    monkeypatch.setenv("KFP_POD_NAME", "step-pod")
    return reference


def terminate(fake: FakeCluster) -> None:
    """What Kubernetes does to the step's process once it waits for its job."""
    while not fake.seen("watch"):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_job_is_created_watched_and_its_log_told(
    fake: FakeCluster, launched: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    launched(completes)
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"TrainJob moonflow/{NAME} created" and told[-2:] == ["step 1", "step 2"]
    assert fake.names == [NAME] and not fake.deleted
    (watch,) = fake.seen("watch")[:1]
    assert watch.query["resourceVersion"].isdigit() and watch.query["allowWatchBookmarks"] == "True"
    assert watch.query["fieldSelector"] == f"metadata.name={NAME}"


def test_running_is_not_success_and_queued_is_not_death(
    fake: FakeCluster, launched: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Longer in the queue than any patience but the outage's: a watch ends, nothing is said twice."""

    def script(fake: FakeCluster) -> None:
        fake.condition(NAME, "Suspended", reason="Suspended")
        time.sleep(1.5)
        fake.condition(NAME, "Suspended", status="False", reason="Resumed")
        fake.pod(NAME, phase="Pending", container={"waiting": {"reason": "ContainerCreating"}})
        fake.touch(NAME)
        time.sleep(0.3)
        fake.pod(NAME)
        fake.condition(NAME, "Running")
        time.sleep(0.3)
        completes(fake)

    started = time.monotonic()
    launched(script)
    assert time.monotonic() - started > 2 and len(fake.seen("watch")) >= 2
    told = capsys.readouterr().out
    assert told.count("queued in LocalQueue train") == 1
    assert (
        told.index("queued") < told.index(f"pod {NAME}-node-0-0-0 pending: starting") < told.index("running on 1 of 1")
    )


def test_an_existing_job_of_the_same_work_is_attached_to(
    fake: FakeCluster, launched: Callable[..., None], work: StepWork, placement: Placement
) -> None:
    stored(fake, work, placement)
    threading.Timer(0.3, completes, (fake,)).start()
    launched()
    assert not fake.deleted and fake.job(NAME)["metadata"]["uid"] == "old"  # type: ignore[index]


def test_a_job_of_other_parameters_is_an_error_that_says_what_to_do(
    fake: FakeCluster, cluster: Cluster, work: StepWork, placement: Placement
) -> None:
    stored(fake, work, placement)
    other = StepWork(work.run_id, work.step, Config(seed=5), {})
    with pytest.raises(MoonflowError, match=f"other parameters.*kubectl delete trainjob -n moonflow {NAME}"):
        run(other, placement, lambda: True, cluster)
    assert not fake.deleted


def test_a_failed_job_is_deleted_and_created_anew(
    fake: FakeCluster,
    launched: Callable[..., None],
    work: StepWork,
    placement: Placement,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its pods end slowly: the new job is not created while they run."""
    stored(fake, work, placement)
    fails(fake, 137, "OOMKilled")
    removed: list[float] = []

    def ends_slowly(name: str) -> None:
        def end() -> None:
            removed.append(time.monotonic())
            fake.remove_job(name)

        threading.Timer(0.6, end).start()

    fake.on_delete = ends_slowly
    launched(completes)
    told = capsys.readouterr().out
    assert "had ended before (OOMKilled: " in told and f"{NAME} created" in told
    assert fake.deleted == [NAME] and fake.job(NAME)["metadata"]["uid"] != "old"  # type: ignore[index]
    assert fake.seen("create")[-1].at > removed[0]


def test_complete_without_a_manifest_is_an_error_and_not_found_again(
    fake: FakeCluster, launched: Callable[..., None]
) -> None:
    with pytest.raises(MoonflowError, match="is Complete, but prepare_data has no complete manifest"):
        launched(completes, left=False)
    assert fake.names == []


@pytest.mark.parametrize(
    ("code", "reason", "line", "told"),
    [
        (137, "OOMKilled", "step 1", "OOMKilled: pod .* memory limit of 64Gi"),
        (1, "Error", "node-0:1:7 [0] NCCL WARN Connect to 10.0.0.2 failed", "NCCL: node-0:1:7 .*Connect to 10.0.0.2"),
        (1, "Error", "moonflow error: s3://b/x is damaged", "ended with exit code 1: s3://b/x is damaged"),
        (3, "Error", "good bye", "ended with exit code 3: good bye"),
    ],
)
def test_a_failed_job_is_told_in_one_line(
    fake: FakeCluster, launched: Callable[..., None], code: int, reason: str, line: str, told: str
) -> None:
    with pytest.raises(MoonflowError, match=f"TrainJob moonflow/{NAME} failed: .*{told}") as caught:
        launched(lambda fake: fails(fake, code, reason, line))
    assert "\n" not in str(caught.value)
    assert fake.names == [NAME], "a failed job is left to be looked at"


def test_a_deadline_is_told_although_the_pods_are_gone(fake: FakeCluster, launched: Callable[..., None]) -> None:
    with pytest.raises(MoonflowError, match="deadline: it ran longer than 24 h"):
        launched(lambda fake: fake.condition(NAME, "Failed", reason="DeadlineExceeded"))


def test_an_image_that_cannot_be_pulled_is_told_soon_and_holds_no_place(
    fake: FakeCluster, launched: Callable[..., None]
) -> None:
    def script(fake: FakeCluster) -> None:
        waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "manifest unknown"}}
        fake.pod(NAME, phase="Pending", container=waiting)
        fake.touch(NAME)

    started = time.monotonic()
    with pytest.raises(MoonflowError, match="cannot start: ImagePullBackOff: pod .*: manifest unknown; fix it"):
        launched(script)
    assert time.monotonic() - started < 5 and fake.names == []


def test_a_pull_that_mends_itself_is_no_failure(fake: FakeCluster, launched: Callable[..., None]) -> None:
    def script(fake: FakeCluster) -> None:
        fake.pod(NAME, phase="Pending", container={"waiting": {"reason": "ErrImagePull", "message": "timeout"}})
        fake.touch(NAME)
        time.sleep(0.1)
        fake.pod(NAME)
        fake.touch(NAME)
        time.sleep(0.5)
        completes(fake)

    launched(script)


@pytest.mark.parametrize("found", ["", "runc", "gvisor"])
def test_pods_without_the_runtime_class_that_was_asked_for_end_the_job(
    found: str, fake: FakeCluster, cluster: Cluster, work: StepWork
) -> None:
    fake.runtime_class, fake.on_create = found, lambda fake, _: completes(fake)
    values = {"launcher": "trainjob", "image": "moonflow-train:0.1.0", "runtime_class": "gvisor"}
    placement = Placement.parse(values, "test")
    if found == "gvisor":
        run(work, placement, lambda: True, cluster)
        return
    with pytest.raises(MoonflowError, match="is not of RuntimeClass gvisor: let ClusterTrainingRuntime moonflow-torch"):
        run(work, placement, lambda: True, cluster)
    assert fake.deleted == [NAME]


def test_a_job_deleted_by_someone_else_is_told(fake: FakeCluster, launched: Callable[..., None]) -> None:
    def script(fake: FakeCluster) -> None:
        time.sleep(0.2)
        fake.remove_job(NAME)

    with pytest.raises(MoonflowError, match="was deleted by someone else: run again"):
        launched(script)


def test_the_job_is_owned_by_the_owner_of_the_steps_pod(
    fake: FakeCluster, launched: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "run-x", "uid": "1"}
    fake.own_pod("step-pod", metadata={"ownerReferences": [{**workflow, "controller": True}]})
    monkeypatch.setenv("KFP_POD_NAME", "step-pod")
    launched(completes)
    assert fake.job(NAME)["metadata"]["ownerReferences"] == [workflow]  # type: ignore[index]


@pytest.mark.parametrize(
    ("phase", "spec"),
    [
        ("Running", {"activeDeadlineSeconds": 0}),  # how Kubeflow Pipelines terminates a run
        ("Running", {"shutdown": "Terminate"}),
        ("Failed", {}),
        ("", {}),
    ],
)
def test_sigterm_of_an_ended_run_deletes_the_job(
    phase: str, spec: dict[str, object], fake: FakeCluster, launched: Callable[..., None], stepping: dict[str, str]
) -> None:
    """Also while Kubernetes says of the pod that it is evicted."""

    def script(fake: FakeCluster) -> None:
        marked = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
        fake.own_pod("step-pod", metadata={"ownerReferences": [stepping]}, status={"conditions": [marked]})
        fake.workflow(stepping["name"], phase, spec=spec)
        if not phase:
            fake.workflows.clear()  # deleted
        terminate(fake)

    with pytest.raises(Terminated):
        launched(script)
    assert fake.deleted == [NAME]


def test_sigterm_while_the_run_goes_on_leaves_the_job(
    fake: FakeCluster, launched: Callable[..., None], stepping: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Terminated):
        launched(terminate)
    assert not fake.deleted and "its run run-x goes on" in capsys.readouterr().out


@pytest.mark.parametrize("evicted", [True, False])
def test_where_the_run_cannot_be_read_the_pod_tells(
    evicted: bool, fake: FakeCluster, launched: Callable[..., None], stepping: dict[str, str]
) -> None:
    def script(fake: FakeCluster) -> None:
        marked = {"type": "DisruptionTarget", "status": str(evicted), "reason": "EvictionByEvictionAPI"}
        fake.own_pod("step-pod", metadata={"ownerReferences": [stepping]}, status={"conditions": [marked]})
        fake.faults = [Fault("workflow", status=403)]
        terminate(fake)

    with pytest.raises(Terminated):
        launched(script)
    assert fake.deleted == ([] if evicted else [NAME])


def test_a_job_that_another_run_goes_on_with_is_that_runs(
    fake: FakeCluster,
    launched: Callable[..., None],
    work: StepWork,
    placement: Placement,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workflow = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow"}
    monkeypatch.setenv("KFP_RUN_ID", "first")
    stored(fake, work, placement, owners=[{**workflow, "name": "run-1", "uid": "1"}])
    fake.own_pod("step-pod", metadata={"ownerReferences": [{**workflow, "name": "run-2", "uid": "2"}]})
    monkeypatch.setenv("KFP_POD_NAME", "step-pod")
    monkeypatch.setenv("KFP_RUN_ID", "second")
    threading.Thread(target=completes, args=(fake,), daemon=True).start()
    launched()
    metadata = fake.job(NAME)["metadata"]  # type: ignore[index]
    assert metadata["labels"][RUN] == "second" and metadata["labels"]["moonflow.dev/step"] == work.step
    assert [owner["name"] for owner in metadata["ownerReferences"]] == ["run-2"]


def test_no_cluster_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", f"{tmp_path}/none")
    with pytest.raises(MoonflowError, match="finds no cluster"):
        Cluster.connect()
