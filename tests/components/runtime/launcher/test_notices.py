"""What refuses a job its pods or its place in the queue is told, and ends the wait if waiting does not help."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from model.boundary.errors import MoonflowError
from tests.components.runtime.launcher.fake_cluster import FakeCluster
from tests.components.runtime.launcher.rest import Fault
from tests.components.runtime.launcher.script import NAME, completes

POD = f"{NAME}-node-0"
CPU_LIMIT = (
    f'job "{POD}" creation failed with error: Job.batch "{POD}" is invalid: spec.template.spec.containers[0].resources'
    '.requests: Invalid value: "16": must be less than or equal to cpu limit of 1'
)


def quota(number: int, asked: str, used: str, limit: str) -> str:
    return (
        f'Error creating: pods "{POD}-0-abcd{number}" is forbidden: exceeded quota: moonflow, requested: {asked}, '
        f"used: {used}, limited: {limit}"
    )


@pytest.mark.parametrize(
    ("kind", "name", "reason", "message"),
    [
        ("JobSet", NAME, "JobCreationFailed", CPU_LIMIT),
        ("Job", POD, "FailedCreate", 'Error creating: pods "x" is forbidden: violates PodSecurity "baseline"'),
        ("Job", POD, "FailedCreate",
         quota(1, "pods=1,requests.cpu=16", "pods=2,requests.cpu=2", "pods=30,requests.cpu=8")),
        ("Job", POD, "FailedCreate",
         quota(1, "requests.memory=64Gi", "requests.memory=0", "requests.memory=32Gi")),
        ("TrainJob", NAME, "TrainJobResourcesCreationFailed", "admission webhook denied the request: name is too long"),
    ],
)  # fmt: skip
def test_what_will_never_be_created_is_told_and_ends_the_job(
    kind: str,
    name: str,
    reason: str,
    message: str,
    fake: FakeCluster,
    launched: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def script(fake: FakeCluster) -> None:
        fake.event(kind, name, reason, message)
        fake.touch(NAME)

    started = time.monotonic()
    with pytest.raises(MoonflowError, match=f"cannot start: {reason}: {kind} {name}: .*; fix it and run again"):
        launched(script)
    assert time.monotonic() - started < 5 and fake.names == []
    assert f"TrainJob moonflow/{NAME}: {kind} {name}: {reason}: {message[:40]}" in capsys.readouterr().out


def test_a_quota_that_others_use_is_waited_for_and_told_once(
    fake: FakeCluster, launched: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def script(fake: FakeCluster) -> None:
        for number in range(3):
            used = quota(number, "requests.cpu=4", f"requests.cpu={8 - number}", "requests.cpu=8")
            fake.event("Job", POD, "FailedCreate", used)
            fake.touch(NAME)
            time.sleep(0.3)
        completes(fake)

    launched(script)
    assert capsys.readouterr().out.count("exceeded quota") == 1


def test_a_refusal_that_was_overcome_is_no_trouble(fake: FakeCluster, launched: Callable[..., None]) -> None:
    """The account was missing, say; then it was there. A pod that is lost later comes back slowly."""

    def script(fake: FakeCluster) -> None:
        fake.event("Job", POD, "FailedCreate", "error looking up service account moonflow/moonflow-train: not found")
        time.sleep(1.1)  # times are whole seconds
        fake.pod(NAME)
        fake.touch(NAME)
        time.sleep(0.2)
        fake.pod(NAME, container={"terminated": {"exitCode": 137}}, phase="Failed")
        fake.end_log(f"{POD}-0-0")
        for _ in range(3):
            fake.touch(NAME)
            time.sleep(0.3)
        completes(fake)

    launched(script)


@pytest.mark.parametrize("kind", ["events", "workloads"])
def test_only_what_is_about_this_job_is_told_and_old_news_is_not(
    kind: str, fake: FakeCluster, launched: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the right to see them the job runs all the same."""

    def script(fake: FakeCluster) -> None:
        fake.event("JobSet", NAME, "JobCreationFailed", "of an earlier job", at="2026-01-01T00:00:00Z")
        fake.event("JobSet", "another", "JobCreationFailed", "of another job")
        fake.event("Pod", f"{NAME}-node-0-0-x", "Scheduled", "assigned", type_="Normal")
        fake.touch(NAME)
        completes(fake)

    fake.faults = [Fault(kind, status=403)]
    launched(script)
    told = capsys.readouterr().out
    assert "earlier" not in told and "another" not in told and "assigned" not in told


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("Pending", "couldn't assign flavors to pod set node: insufficient quota for nvidia.com/gpu in flavor gpu, "
         "previously considered podsets requests (0) + current podset request (16) > maximum capacity (8)"),
        ("ExceedsMaxQuota", "it asks for more than there is"),
        ("Pending", "couldn't assign flavors to pod set node: resource rdma/x unavailable in ClusterQueue"),
        ("Inadmissible", "LocalQueue train doesn't exist"),
    ],
)  # fmt: skip
def test_a_job_that_can_never_fit_its_queue_is_told_and_ended(
    reason: str, message: str, fake: FakeCluster, launched: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MoonflowError, match="cannot start: Kueue: "):
        launched(lambda fake: fake.waits_in_queue(NAME, reason, message))
    assert f"Kueue: {reason}: {message[:60]}" in capsys.readouterr().out and fake.names == []


def test_a_job_that_waits_for_room_is_told_why_and_waits_on(
    fake: FakeCluster, launched: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def script(fake: FakeCluster) -> None:
        for needed in (8, 4):
            fake.waits_in_queue(
                NAME, "Pending", f"insufficient unused quota for cpu in flavor cpu, {needed} more needed"
            )
            time.sleep(0.5)
        fake.workloads = []
        fake.condition(NAME, "Suspended", status="False", reason="Resumed")
        completes(fake)

    launched(script)
    told = capsys.readouterr().out
    assert told.count("insufficient unused quota") == 1 and told.count("queued in LocalQueue train") == 1


def test_nothing_is_waited_for_once_the_pods_have_succeeded(
    fake: FakeCluster, launched: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def script(fake: FakeCluster) -> None:
        fake.pod(NAME)
        fake.touch(NAME)
        time.sleep(0.3)
        fake.pod(NAME, container={"terminated": {"exitCode": 0}}, phase="Succeeded")
        fake.touch(NAME)
        time.sleep(0.3)
        fake.end_log(f"{NAME}-node-0-0-0")
        fake.condition(NAME, "Complete")

    launched(script)
    told = capsys.readouterr().out
    assert "waiting for its pods" not in told.partition("running on")[2]
