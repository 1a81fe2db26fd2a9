"""The launcher against the REST protocol: what the cluster does is scripted, the client is the real one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from components.prepare_data.config import Config
from components.runtime import entry
from components.runtime.launcher.body import RUN, WORK, job_name, train_job
from components.runtime.launcher.cluster import Cluster
from components.runtime.launcher.placement import Placement
from components.runtime.launcher.trainjob import run, sweep
from components.runtime.launcher.work import Work
from model.errors import MoonflowError
from tests.components.runtime.launcher.crd import validate_train_job
from tests.components.runtime.launcher.fake_cluster import FakeCluster
from tests.components.runtime.launcher.rest import Fault
from tests.manifests import schemas

NAME = job_name("run-1", "prepare_data")
Script = Callable[[FakeCluster], None]


@pytest.fixture
def launched(fake: FakeCluster, cluster: Cluster, work: Work, placement: Placement) -> Callable[..., None]:
    """Run the work while the cluster follows a script; the step's manifest exists unless ``left`` says otherwise."""

    def launch(script: Script | None = None, *, left: bool = True) -> None:
        if schemas.FOLDER.is_dir():
            fake.validate = validate_train_job
        if script is not None:
            fake.on_create = lambda fake, job: script(fake)
        run(work, placement, lambda: left, cluster)

    return launch


def completes(fake: FakeCluster) -> None:
    while not fake.seen("watch") or any(fault.times for fault in fake.faults if fault.kind in {"watch", "pods"}):
        time.sleep(0.01)
    pod = fake.pod(NAME)
    fake.log(pod, "step 1", "step 2")
    fake.pod(NAME, container={"terminated": {"exitCode": 0}}, phase="Succeeded")
    fake.end_log(pod)
    fake.condition(NAME, "Complete")


def fails(fake: FakeCluster, code: int = 1, reason: str = "Error", *lines: str) -> None:
    pod = fake.pod(NAME)
    fake.log(pod, *lines)
    fake.pod(NAME, container={"terminated": {"exitCode": code, "reason": reason}}, phase="Failed")
    fake.end_log(pod)
    fake.condition(NAME, "Failed", reason="JobSetFailed", message="jobset failed")


def stored(
    fake: FakeCluster, work: Work, placement: Placement, sha256: str = "", owners: list[dict[str, str]] | None = None
) -> None:
    body = train_job(work, placement, "moonflow", owners)
    body["metadata"]["uid"] = "old"
    body["metadata"]["annotations"][WORK] = sha256 or work.sha256
    fake.put_job(body)


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


def test_watches_go_on_from_the_last_version(fake: FakeCluster, launched: Callable[..., None]) -> None:
    def script(fake: FakeCluster) -> None:
        for _ in range(3):
            time.sleep(0.4)
            fake.touch(NAME)
        completes(fake)

    launched(script)
    versions = [int(request.query["resourceVersion"]) for request in fake.seen("watch")]
    assert len(versions) >= 2 and versions == sorted(set(versions))
    assert len(fake.seen("list")) == 1, "an undisturbed watch lists once"


def test_bookmarks_move_the_version_on(fake: FakeCluster, launched: Callable[..., None]) -> None:
    """Other objects' changes make our version old; without bookmarks the second watch would get 410."""

    def script(fake: FakeCluster) -> None:
        time.sleep(0.1)
        fake.pod(NAME)  # raises the version without an event of ours
        time.sleep(1.2)
        completes(fake)

    launched(script)
    first, second = [int(request.query["resourceVersion"]) for request in fake.seen("watch")][:2]
    assert second > first


def test_410_leads_to_a_new_list_and_nothing_is_missed(fake: FakeCluster, launched: Callable[..., None]) -> None:
    def script(fake: FakeCluster) -> None:
        while not fake.seen("watch"):
            time.sleep(0.01)
        time.sleep(0.1)
        fake.compact()
        time.sleep(0.2)
        completes(fake)

    fake.bookmark_s = 60.0
    launched(script)
    assert len(fake.seen("list")) >= 2


@pytest.mark.parametrize("kind", ["create", "list", "watch", "pods", "log"])
def test_passing_faults_change_nothing(
    fake: FakeCluster, launched: Callable[..., None], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.faults = [Fault(kind, status=500), Fault(kind, drop=True), Fault(kind, status=503), Fault(kind, drop_after=0)]
    if kind == "log":
        del fake.faults[2]  # an ended log is given up after three failures
    launched(completes)
    assert capsys.readouterr().out.splitlines()[-2:] == ["step 1", "step 2"]
    assert not any(fault.times for fault in fake.faults), "the faults did not happen"


@pytest.mark.parametrize("kind", ["create", "watch"])
def test_retry_after_is_waited_for(fake: FakeCluster, launched: Callable[..., None], kind: str) -> None:
    fake.faults = [Fault(kind, status=429, retry_after=1)]
    launched(completes)
    refused = fake.seen(kind)[0]
    again = fake.seen("create")[1] if kind == "create" else fake.seen("list")[1]
    assert again.at - refused.at >= 1


def test_a_create_whose_answer_is_lost_is_attached_to(
    fake: FakeCluster, launched: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    fake.faults = [Fault("create", lost=True)]
    launched(completes)
    assert "is there already: attached" in capsys.readouterr().out
    assert len(fake.seen("create")) == 2 and fake.names == [NAME]


def test_an_api_server_that_stays_away_is_one_line_and_loses_no_job(
    fake: FakeCluster, launched: Callable[..., None]
) -> None:
    fake.faults = [Fault("watch", status=500, times=10**6)]
    with pytest.raises(MoonflowError, match=r"did not recover \(500 .*a running job goes on; run again to attach"):
        launched(lambda fake: None)
    assert 3 <= len(fake.seen("watch")) < 200, "without back-off"
    assert not fake.deleted


def test_log_lines_survive_reconnects_without_doubles(
    fake: FakeCluster, launched: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two connections break; several lines bear the same time, and sinceTime knows seconds only."""
    fake.faults = [Fault("log", drop_after=3), Fault("log", status=500), Fault("log", drop_after=6)]
    same = "2026-01-01T00:00:01.5Z"

    def script(fake: FakeCluster) -> None:
        pod = fake.pod(NAME)
        for line, at in [("a", "2026-01-01T00:00:01.25Z"), ("b", same), ("b", same), ("b", same), ("c", same)]:
            fake.log(pod, line, at=at)
        fake.log(pod, "d", at="2026-01-01T00:00:01.500000001Z")
        fake.touch(NAME)
        time.sleep(0.5)
        fake.log(pod, "e", "f", "g", at="2026-01-01T00:00:02Z")
        fake.end_log(pod)
        time.sleep(0.3)
        fake.condition(NAME, "Complete")

    launched(script)
    told = [line for line in capsys.readouterr().out.splitlines() if len(line) == 1]
    assert told == ["a", "b", "b", "b", "c", "d", "e", "f", "g"]
    assert "sinceTime" in fake.seen("log")[-1].query


def test_a_preempted_pod_is_replaced_and_the_job_goes_on(
    fake: FakeCluster, launched: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def script(fake: FakeCluster) -> None:
        first = fake.pod(NAME, 0)
        fake.log(first, "first attempt")
        fake.touch(NAME)
        time.sleep(0.2)
        marked = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "by x"}
        fake.pod(NAME, 0, container={"terminated": {"exitCode": 137}}, phase="Failed", conditions=[marked])
        fake.end_log(first)
        fake.touch(NAME)
        time.sleep(0.5)
        second = fake.pod(NAME, 1)
        fake.log(second, "second attempt")
        fake.touch(NAME)
        time.sleep(0.3)
        fake.pod(NAME, 1, container={"terminated": {"exitCode": 0}}, phase="Succeeded")
        fake.end_log(second)
        fake.condition(NAME, "Complete")

    launched(script)
    told = capsys.readouterr().out
    assert told.count("is taken away (PreemptionByScheduler: by x); the job goes on") == 1
    assert told.index("first attempt") < told.index("is replaced by") < told.index("second attempt")
    assert not fake.deleted


def test_an_existing_job_of_the_same_work_is_attached_to(
    fake: FakeCluster, launched: Callable[..., None], work: Work, placement: Placement
) -> None:
    stored(fake, work, placement)
    threading.Timer(0.3, completes, (fake,)).start()
    launched()
    assert not fake.deleted and fake.job(NAME)["metadata"]["uid"] == "old"  # type: ignore[index]


def test_a_job_of_other_parameters_is_an_error_that_says_what_to_do(
    fake: FakeCluster, cluster: Cluster, work: Work, placement: Placement
) -> None:
    stored(fake, work, placement)
    other = Work(work.run_id, work.step, Config(seed=5), {})
    with pytest.raises(MoonflowError, match=f"other parameters.*kubectl delete trainjob -n moonflow {NAME}"):
        run(other, placement, lambda: True, cluster)
    assert not fake.deleted


def test_a_failed_job_is_deleted_and_created_anew(
    fake: FakeCluster,
    launched: Callable[..., None],
    work: Work,
    placement: Placement,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its pods end slowly: the new job is not created beside them."""
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
    with pytest.raises(MoonflowError, match="cannot start: ImagePullBackOff: pod .*: manifest unknown; mend it"):
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


def test_a_job_deleted_by_someone_else_is_told(fake: FakeCluster, launched: Callable[..., None]) -> None:
    def script(fake: FakeCluster) -> None:
        time.sleep(0.2)
        fake.remove_job(NAME)

    with pytest.raises(MoonflowError, match="was deleted by someone else: run again"):
        launched(script)


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (403, "refused to create TrainJobs in namespace moonflow .*bind the ServiceAccount"),
        (404, "knows no TrainJob .*install Kubeflow Trainer"),
        (422, r"rejected the request to create TrainJobs \(422"),
    ],
)
def test_refusals_say_what_to_do_and_are_not_repeated(
    fake: FakeCluster, launched: Callable[..., None], status: int, told: str
) -> None:
    fake.faults = [Fault("create", status=status)]
    with pytest.raises(MoonflowError, match=told):
        launched()
    assert len(fake.seen("create")) == 1


def test_the_job_is_owned_by_the_owner_of_the_steps_pod(
    fake: FakeCluster, launched: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    workflow = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "run-x", "uid": "1"}
    fake.own_pod("step-pod", metadata={"ownerReferences": [{**workflow, "controller": True}]})
    monkeypatch.setenv("KFP_POD_NAME", "step-pod")
    launched(completes)
    assert fake.job(NAME)["metadata"]["ownerReferences"] == [workflow]  # type: ignore[index]


def test_sweep_ends_what_outlived_its_run_and_nothing_of_the_run_that_continues_it(
    fake: FakeCluster, cluster: Cluster, work: Work, placement: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_RUN_ID", "first")
    stored(fake, work, placement)
    stored(fake, Work(work.run_id, "promote", work.config, {}), placement)
    fake.condition(job_name(work.run_id, "promote"), "Complete")
    monkeypatch.setenv("KFP_RUN_ID", "second")
    stored(fake, Work(work.run_id, "parl", work.config, {}), placement)  # --run-id: the same work's run
    stored(fake, Work("other-run", work.step, work.config, {}), placement)
    monkeypatch.setenv("KFP_RUN_ID", "first")
    monkeypatch.setenv("MOONFLOW_RUN_ID", work.run_id)
    entry._sweep()
    assert fake.deleted == [NAME]
    monkeypatch.delenv("KFP_RUN_ID")
    sweep(cluster)
    assert fake.deleted == [NAME], "outside of Kubeflow there is no run to sweep for"


def test_a_job_that_another_run_goes_on_with_is_that_runs(
    fake: FakeCluster, launched: Callable[..., None], work: Work, placement: Placement, monkeypatch: pytest.MonkeyPatch
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
