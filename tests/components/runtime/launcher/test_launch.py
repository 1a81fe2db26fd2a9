"""The launcher whole: real steps in real processes, their output in a real object store; only the cluster is a fake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from components.runtime.launcher import work as works
from components.runtime.launcher.body import job_name
from components.runtime.launcher.launch import launch, placement_from_environment
from components.runtime.launcher.placement import Placement
from components.runtime.step import complete_manifest
from components.runtime.store.object_store import ObjectStore
from model.boundary.errors import MoonflowError
from pipelines.services import Services
from tests.components.runtime.launcher.fake_cluster import FakeCluster
from tests.components.runtime.launcher.node import Node

pytestmark = pytest.mark.services

TRAINJOB = Placement.parse({"launcher": "trainjob", "image": "moonflow-train:0.1.0"}, "test")
STORE = ("AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MOONFLOW_STORE")
SMALL_DATA = {"text_samples": 100, "image_samples": 100, "eval_samples": 1, "tokenizer_ranks": 400, "processes": 1}
STEP = """
import json, os, sys
from components.runtime.launcher.launch import launch, placement_from_environment
made = launch("counted", json.loads(sys.argv[1]), {}, placement_from_environment())
print("made", made.uri, flush=True)
"""


@pytest.fixture
def node(
    fake: FakeCluster, services: Services, step_environment: str, counted: dict[str, str], tmp_path: Path
) -> Iterator[Node]:
    """A cluster that trains whatever job is created, in a work folder of its own."""
    settings = {name: services.environment[name] for name in STORE if name in services.environment}
    made = Node(fake, settings, {**counted, "MOONFLOW_RUN_DIR": str(tmp_path / "pod")})
    fake.on_create = lambda fake, job: made.train(job)
    yield made
    made.stop()


@pytest.fixture
def step(
    step_environment: str, counted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start the step's own pod as a process; ``config`` is the step's JSON."""
    started: list[subprocess.Popen[str]] = []

    def start(config: str) -> subprocess.Popen[str]:
        environment = {**os.environ, **counted, "MOONFLOW_PLACEMENT": TRAINJOB.model_dump_json(), "KFP_POD_NAME": "me"}
        process = subprocess.Popen(
            [sys.executable, "-c", STEP, config],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def until(process: subprocess.Popen[str], text: str) -> str:
    """What ``process`` prints up to the line with ``text``."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"ended without {text!r}:\n{seen}")


@pytest.mark.slow
def test_a_real_step_runs_in_the_cluster_and_its_manifest_comes_back(
    node: Node, fake: FakeCluster, step_environment: str, store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    queued: list[float] = []
    made = launch("prepare_data", SMALL_DATA, {}, TRAINJOB, queued.append)
    assert len(queued) == 1 and 0 <= queued[0] < 60
    assert made.complete and made.uri == store.uri(f"{step_environment}/prepare_data/0")
    told = capsys.readouterr().out
    assert f"prepare_data: complete, {made.uri}" in told
    assert launch("prepare_data", SMALL_DATA, {}, TRAINJOB, queued.append) == made and len(queued) == 1
    assert len(fake.seen("create")) == 1, "a finished step started a job"


@pytest.mark.slow
def test_a_preempted_training_goes_on_from_its_manifest(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    node.preempt_at = "counted 3"  # the checkpoint of 2 is durable by then
    made = launch("counted", {"steps": 5, "seconds": 0.3}, {}, TRAINJOB)
    assert made.complete and made.tokens_seen == 5
    told = capsys.readouterr().out
    assert "is taken away (PreemptionByScheduler" in told and "is replaced by" in told
    second = told[told.index("is replaced by") :]
    assert "counted 2\n" not in second and "counted 3\n" in second and "counted 5\n" in second


@pytest.mark.slow
def test_a_step_killed_with_9_attaches_again_and_loses_nothing(
    node: Node, fake: FakeCluster, step: Callable[[str], subprocess.Popen[str]]
) -> None:
    config = '{"steps": 6, "seconds": 0.8}'
    first = step(config)
    until(first, "counted 1")
    first.kill()
    first.wait()
    told = until(step(config), "made s3://")
    assert "is there already: attached" in told and told.count("counted 1\n") == 1 and "counted 6" in told
    assert len(fake.names) == 1 and not fake.deleted
    assert [request.kind for request in fake.requests].count("create") == 2
    assert len(fake.list_pods({})["items"]) == 1, "the training ran through"


def test_a_cancelled_step_deletes_its_job(
    node: Node, fake: FakeCluster, step: Callable[[str], subprocess.Popen[str]], step_environment: str
) -> None:
    process = step('{"steps": 100, "seconds": 0.5}')
    until(process, "counted 1")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    node.kill()
    assert "deleted: its step was cancelled" in out and process.returncode == 128 + signal.SIGTERM
    assert fake.deleted == [job_name(step_environment, "counted")]


def test_an_evicted_step_leaves_its_job_running(
    node: Node, fake: FakeCluster, step: Callable[[str], subprocess.Popen[str]]
) -> None:
    process = step('{"steps": 100, "seconds": 0.5}')
    until(process, "counted 1")
    marked = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
    fake.own_pod("me", status={"conditions": [marked]})
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert "goes on, the next attempt attaches to it" in out and process.returncode == 128 + signal.SIGTERM
    assert not fake.deleted and len(fake.names) == 1


def test_bad_input_in_the_cluster_is_the_workers_own_line(node: Node, fake: FakeCluster) -> None:
    node.settings["MOONFLOW_STORE"] = "s3://absent/runs"
    with pytest.raises(MoonflowError, match="failed: pod .* ended with exit code 65: .*no such bucket"):
        launch("counted", {}, {}, TRAINJOB)
    assert len(fake.list_pods({})["items"]) == 1, "it was tried again"


def test_ranks_run_the_step_by_torchrun(
    step_environment: str, counted: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", counted["PYTHONPATH"])
    ranks = Placement.parse({"launcher": "ranks"}, "test")
    made = launch("counted", {"steps": 4}, {}, ranks)
    assert made.complete and "counted 4" in capfd.readouterr().out
    assert launch("counted", {"steps": 4}, {}, ranks) == made


def test_a_failing_rank_is_told_by_its_own_line(
    step_environment: str, counted: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also: a rank refuses to repeat what another one does, whoever started them."""
    monkeypatch.setenv("PYTHONPATH", counted["PYTHONPATH"])
    monkeypatch.setattr(works, "PARALLEL_STEPS", frozenset({"counted"}))
    with pytest.raises(MoonflowError, match="counted: its ranks ended with status 65: counted cannot run as 2 ranks"):
        launch("counted", {"steps": 4}, {}, Placement.parse({"launcher": "ranks", "processes": 2}, "test"))
    assert complete_manifest("counted", {"steps": 4}) is None


@pytest.mark.parametrize("values", [{"launcher": "ranks", "processes": 2}, {"launcher": "trainjob", "nodes": 2}])
def test_no_step_trains_twice_under_the_name_of_parallelism(values: dict[str, object]) -> None:
    with pytest.raises(MoonflowError, match="evaluate cannot run as 2 ranks: .*each rank would repeat"):
        launch("evaluate", {}, {}, Placement.parse(values, "test"))


@pytest.mark.parametrize(
    "values",
    [
        {"processes": 2},
        {"nodes": 2},
        {"launcher": "ranks", "nodes": 2},
        {"rdma": 1},
        {"runtime_class": "gvisor"},
        {"launcher": "ranks", "runtime_class": "gvisor"},
    ],
)
def test_a_launcher_that_cannot_hold_the_ranks_says_so(
    values: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        MoonflowError, match=r'^here: (processes|nodes|rdma|runtime_class) = [\w"]+ needs launcher = .*"trainjob"$'
    ):
        Placement.parse(values, "here")
    monkeypatch.setenv("MOONFLOW_PLACEMENT", json.dumps(values))
    with pytest.raises(MoonflowError, match="^MOONFLOW_PLACEMENT: .* needs launcher = "):
        placement_from_environment()


def test_the_placement_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOONFLOW_PLACEMENT", raising=False)
    assert placement_from_environment().launcher == "in-process"
    monkeypatch.setenv("MOONFLOW_PLACEMENT", TRAINJOB.model_dump_json())
    assert placement_from_environment() == TRAINJOB
    monkeypatch.setenv("MOONFLOW_PLACEMENT", '{"launcher": "slurm"}')
    with pytest.raises(MoonflowError, match="MOONFLOW_PLACEMENT: parameter 'launcher': .*slurm"):
        placement_from_environment()
