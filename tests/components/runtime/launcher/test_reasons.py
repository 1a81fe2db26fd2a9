from __future__ import annotations

from typing import Any

import pytest

from components.runtime.launcher.reasons import disruption, from_log, of_failure, unstartable

FAILED = {
    "type": "Failed",
    "status": "True",
    "reason": "JobSetFailed",
    "message": "jobset failed due to one or more job failures",
}


def job(**failed: str) -> dict[str, Any]:
    return {"spec": {"activeDeadlineSeconds": 7200}, "status": {"conditions": [FAILED | failed]}}


def pod(
    name: str = "p-0", last: dict[str, Any] | None = None, state: dict[str, Any] | None = None, **status: Any
) -> Any:
    containers = [{"name": "node", "state": state or {}, "lastState": last or {}}]
    spec = {"containers": [{"name": "node", "resources": {"limits": {"memory": "64Gi"}}}]}
    return {"metadata": {"name": name}, "spec": spec, "status": {"containerStatuses": containers, **status}}


def ended(code: int, reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason}}


NCCL = [
    "step 10 loss 2.0",
    "node-0:1:77 [0] NCCL WARN Net : Call to recv from 10.0.0.2<43210> failed : Connection refused",
    "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1970",
]
TORCHRUN = [
    "Traceback (most recent call last):",
    '  File "stage.py", line 3, in run',
    "ValueError: rows must divide the batch",
    "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ",
    "============================================================",
    "components.runtime.launcher.worker FAILED",
    "============================================================",
]
WORKER = ["counted 1", "moonflow error: s3://b/x has no manifest.json: run that step again", *TORCHRUN[3:]]


@pytest.mark.parametrize(
    ("pods", "log", "line"),
    [
        ([pod(state=ended(137, "OOMKilled"))], [], "OOMKilled: pod p-0 used more than its memory limit of 64Gi"),
        ([pod(last=ended(137, "OOMKilled"), state={"running": {}})], [], "OOMKilled: pod p-0"),
        ([pod("p-1", state=ended(1)), pod(state=ended(137, "OOMKilled"))], NCCL, "OOMKilled: pod p-0"),
        ([pod(reason="Evicted", message="node was low on memory")], [], "preempted: pod p-0: Evicted: node was low"),
        ([pod(state={"waiting": {"reason": "ImagePullBackOff", "message": "no image"}})], [], "ImagePullBackOff: pod"),
        ([pod(state=ended(1))], NCCL, "NCCL: node-0:1:77 [0] NCCL WARN Net : Call to recv"),
        ([pod(state=ended(1))], ["torch.OutOfMemoryError: CUDA out of memory. Tried"], "accelerator out of memory: t"),
        ([pod(state=ended(1))], TORCHRUN, "pod p-0 ended with exit code 1: ValueError: rows must divide the batch"),
        ([pod(state=ended(1))], WORKER, "pod p-0 ended with exit code 1: s3://b/x has no manifest.json: run that step"),
        ([pod(state=ended(3))], ["all went", "wrong", ""], "pod p-0 ended with exit code 3: wrong"),
        ([pod(state=ended(3))], [], "pod p-0 ended with exit code 3: it wrote nothing"),
        ([], [], "JobSetFailed: jobset failed due to one or more job failures"),
        ([], ["bye"], "JobSetFailed: jobset failed due to one or more job failures; last log line: bye"),
    ],
)  # fmt: skip
def test_one_line_for_each_cause(pods: list[Any], log: list[str], line: str) -> None:
    told = of_failure(job(), pods, log)
    assert told.startswith(line) and "\n" not in told


def test_a_deadline_is_told_in_hours_whatever_the_pods_say() -> None:
    told = of_failure(job(reason="DeadlineExceeded"), [pod(state=ended(137))], NCCL)
    assert told.startswith("deadline: it ran longer than 2 h; raise deadline_hours")


def test_an_unknown_runtime_is_told_as_the_controller_says_it() -> None:
    told = of_failure(job(reason="TrainingRuntimeNotSupported", message="unsupported runtime: x"), [], [])
    assert told == "TrainingRuntimeNotSupported: unsupported runtime: x"


def test_disruption_is_seen_before_the_pod_is_gone() -> None:
    marked = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "for pod x"}
    assert disruption(pod(conditions=[marked])) == "PreemptionByScheduler: for pod x"
    assert disruption(pod(conditions=[{**marked, "status": "False"}])) is None
    assert disruption(pod(phase="Failed", state=ended(1))) is None


def test_starting_is_no_trouble() -> None:
    assert unstartable([pod(state={"waiting": {"reason": "ContainerCreating"}})]) is None
    assert unstartable([pod(state={"waiting": {"reason": "CreateContainerConfigError", "message": "x"}})])


def test_long_lines_are_cut() -> None:
    assert len(from_log(["x" * 10_000])) == 400
