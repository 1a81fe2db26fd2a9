"""Watching a job over the REST protocol: versions, faults on the way, log lines, pods that come and go."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from model.boundary.errors import MoonflowError
from tests.components.runtime.launcher.fake_cluster import FakeCluster
from tests.components.runtime.launcher.rest import Fault
from tests.components.runtime.launcher.script import NAME, completes


def test_watches_go_on_from_the_last_version(fake: FakeCluster, launched: Callable[..., None]) -> None:
    def script(fake: FakeCluster) -> None:
        for _ in range(5):
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
