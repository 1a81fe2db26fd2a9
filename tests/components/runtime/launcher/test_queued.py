"""The seconds that a job queued are told once, by the cluster's times, whoever waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from components.runtime.launcher.cluster import Cluster
from components.runtime.launcher.placement import Placement
from components.runtime.launcher.queued import SCHEDULED
from components.runtime.launcher.trainjob import run
from components.runtime.launcher.work import StepWork
from model.boundary.errors import MoonflowError
from tests.components.runtime.launcher.fake_cluster import FakeCluster
from tests.components.runtime.launcher.rest import Fault
from tests.components.runtime.launcher.script import NAME, stored

CREATED = "2026-01-01T00:00:00Z"
Waiting = Callable[[], list[float]]


@pytest.fixture
def waiting(fake: FakeCluster, cluster: Cluster, work: StepWork, placement: Placement) -> Waiting:
    """Wait for the work's job, made at CREATED, to its end; returns what was told of the queue."""
    stored(fake, work, placement)
    job = fake.job(NAME)
    assert job is not None
    job["metadata"]["creationTimestamp"] = CREATED
    fake.put_job(job)

    def wait() -> list[float]:
        told: list[float] = []
        run(work, placement, lambda: True, cluster, told.append)
        return told

    return wait


def scheduled(fake: FakeCluster, at: str, *, status: str = "True", number: int = 0, rank: int = 0) -> str:
    row = {"type": "PodScheduled", "status": status, "lastTransitionTime": at}
    name = fake.pod(NAME, number, rank, conditions=[row], container={"terminated": {"exitCode": 0}}, phase="Succeeded")
    fake.end_log(name)
    return name


def kept(fake: FakeCluster) -> str:
    job = fake.job(NAME)
    assert job is not None
    return str(job["metadata"]["annotations"].get(SCHEDULED, ""))


def test_it_queued_from_its_creation_until_its_first_pod_had_a_node(fake: FakeCluster, waiting: Waiting) -> None:
    scheduled(fake, "2026-01-01T00:04:00Z", rank=0)
    scheduled(fake, "2026-01-01T00:03:12Z", rank=1)
    scheduled(fake, "2026-01-01T00:01:00Z", rank=2, status="False")  # no node had room then
    fake.condition(NAME, "Complete")
    assert waiting() == [192.0]


def test_it_is_told_once_however_often_the_job_is_looked_at(
    fake: FakeCluster, cluster: Cluster, work: StepWork, placement: Placement
) -> None:
    """A whole life: created, suspended by Kueue, given a node, lost, replaced."""
    told: list[float] = []

    def script(fake: FakeCluster) -> None:
        fake.condition(NAME, "Suspended", reason="Suspended")
        time.sleep(1.1)  # times are whole seconds
        fake.condition(NAME, "Suspended", status="False", reason="Resumed")
        row = {"type": "PodScheduled", "status": "True"}
        for number in range(2):
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 100 * number))
            fake.pod(NAME, number, conditions=[{**row, "lastTransitionTime": at}])
            fake.touch(NAME)
            time.sleep(0.2)
        for number in range(2):
            fake.end_log(f"{NAME}-node-0-0-{number}")
        fake.condition(NAME, "Complete")

    fake.on_create = lambda fake, job: script(fake)
    run(work, placement, lambda: True, cluster, told.append)
    assert len(told) == 1 and 1 <= told[0] < 90
    assert len(fake.seen("patch")) == 1


def test_an_attempt_that_attaches_after_the_first_pod_is_gone_tells_the_same(
    fake: FakeCluster, waiting: Waiting
) -> None:
    """The first attempt loses the right to watch; the node is lost before the second one starts."""
    fake.faults = [Fault("watch", status=403)]
    first = scheduled(fake, "2026-01-01T00:03:12Z")
    with pytest.raises(MoonflowError, match="refused to watch"):
        waiting()
    assert kept(fake) == "2026-01-01T00:03:12Z"
    fake.remove_pod(first)
    scheduled(fake, "2026-01-02T00:00:00Z", number=1)
    fake.condition(NAME, "Complete")
    assert waiting() == [192.0]


def test_a_job_whose_pods_are_gone_tells_nothing(fake: FakeCluster, waiting: Waiting) -> None:
    fake.condition(NAME, "Complete")
    assert waiting() == [] and kept(fake) == ""


@pytest.mark.parametrize("at", ["yesterday", "2026-01-01T00:03:12"], ids=["no time", "no zone"])
def test_a_time_that_cannot_be_read_ends_no_step(at: str, fake: FakeCluster, waiting: Waiting) -> None:
    scheduled(fake, at)
    fake.condition(NAME, "Complete")
    assert waiting() == []


def test_without_the_right_to_note_it_with_the_job_it_is_told_all_the_same(fake: FakeCluster, waiting: Waiting) -> None:
    fake.faults = [Fault("patch", status=403, times=9)]
    scheduled(fake, "2026-01-01T00:03:12Z")
    fake.condition(NAME, "Complete")
    assert waiting() == [192.0] and kept(fake) == ""
