"""What a cluster does to the job of the work under test: a script is played when the job is created."""

from __future__ import annotations

import time
from collections.abc import Callable

from components.runtime.launcher.body import WORK, job_name, train_job
from components.runtime.launcher.placement import Placement
from components.runtime.launcher.work import StepWork
from tests.components.runtime.launcher.fake_cluster import FakeCluster

NAME = job_name("run-1", "prepare_data")
Script = Callable[[FakeCluster], None]


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
    fake: FakeCluster,
    work: StepWork,
    placement: Placement,
    sha256: str = "",
    owners: list[dict[str, str]] | None = None,
) -> None:
    body = train_job(work, placement, "moonflow", owners)
    body["metadata"]["uid"] = "old"
    body["metadata"]["annotations"][WORK] = sha256 or work.sha256
    fake.put_job(body)
