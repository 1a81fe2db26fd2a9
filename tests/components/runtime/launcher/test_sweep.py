"""What ended runs leave behind, against the REST protocol and a real MLflow store."""

from __future__ import annotations

import mlflow
import pytest

from components.runtime.kfp import entry
from components.runtime.launcher.body import job_name
from components.runtime.launcher.cluster import Cluster
from components.runtime.launcher.placement import Placement
from components.runtime.launcher.sweep import sweep, sweep_namespace
from components.runtime.launcher.work import StepWork
from components.runtime.tracking import mlflow_runs
from model.boundary.errors import MoonflowError
from tests.components.runtime.launcher.fake_cluster import FakeCluster
from tests.components.runtime.launcher.rest import Fault
from tests.components.runtime.launcher.script import NAME, stored


@pytest.fixture(autouse=True)
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "KFP_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def client(no_mlflow: None, own_mlflow: str) -> mlflow.MlflowClient:
    return mlflow_runs.connect(own_mlflow)


def test_sweep_ends_what_outlived_its_run_and_nothing_of_the_run_that_continues_it(
    fake: FakeCluster, cluster: Cluster, work: StepWork, placement: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_RUN_ID", "first")
    stored(fake, work, placement)
    stored(fake, StepWork(work.run_id, "promote", work.config, {}), placement)
    fake.condition(job_name(work.run_id, "promote"), "Complete")
    monkeypatch.setenv("KFP_RUN_ID", "second")
    stored(fake, StepWork(work.run_id, "parl", work.config, {}), placement)  # --run-id: the same work's run
    stored(fake, StepWork("other-run", work.step, work.config, {}), placement)
    monkeypatch.setenv("KFP_RUN_ID", "first")
    monkeypatch.setenv("MOONFLOW_RUN_ID", work.run_id)
    entry.sweep_cancelled()
    assert fake.deleted == [NAME]
    monkeypatch.delenv("KFP_RUN_ID")
    sweep(cluster)
    assert fake.deleted == [NAME], "outside of Kubeflow there is no run to sweep for"


def jobs_of(fake: FakeCluster, work: StepWork, placement: Placement) -> dict[str, str]:
    """A job of each kind of owner, by what the owner is."""
    made = {}
    for what, phase, spec in (
        ("running", "Running", {}),
        ("terminated", "Running", {"activeDeadlineSeconds": 0}),
        ("failed", "Failed", {}),
        ("deleted", "Running", {}),
    ):
        step = StepWork(what, work.step, work.config, {})
        stored(fake, step, placement, owners=[fake.workflow(f"workflow-{what}", phase, spec=spec)])
        made[what] = job_name(what, work.step)
    del fake.workflows["workflow-deleted"]
    stored(fake, work, placement)  # by hand: nobody's
    return made


def test_the_jobs_of_ended_runs_are_deleted_and_no_other(
    fake: FakeCluster, cluster: Cluster, work: StepWork, placement: Placement
) -> None:
    jobs = jobs_of(fake, work, placement)
    fake.condition(jobs["failed"], "Complete")
    sweep_namespace(cluster)
    assert fake.deleted == [jobs["terminated"], jobs["deleted"]]
    sweep_namespace(cluster)
    assert len(fake.deleted) == 2


def test_a_job_that_changes_meanwhile_is_left_to_the_next_time(
    fake: FakeCluster, cluster: Cluster, work: StepWork, placement: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run may have made it its own between our list and our request."""
    jobs = jobs_of(fake, work, placement)
    workflows = cluster.workflows

    def later() -> list[dict[str, object]]:
        fake.touch(jobs["terminated"])
        return workflows()

    monkeypatch.setattr(cluster, "workflows", later)
    sweep_namespace(cluster)
    assert fake.deleted == [jobs["failed"], jobs["deleted"]]


def test_runs_in_mlflow_of_ended_pipelines_end_as_killed(
    fake: FakeCluster, cluster: Cluster, client: mlflow.MlflowClient
) -> None:
    """``first`` was terminated; ``again`` too, but a living run continues it; ``named`` was the argument of one;
    ``laptop`` is not of this cluster."""
    made = {
        run_id: mlflow_runs.of_step(client, run_id, "joint_rl", 1.0)
        for run_id in ("first", "again", "named", "laptop", "going")
    }
    ended = {"activeDeadlineSeconds": 0}
    fake.workflow("w1", "Failed", "first", ended)
    fake.workflow("w2", "Failed", "again", ended)
    fake.workflow("w3", "Running", "third", arguments={"p00_run_id": "again"})
    fake.workflow("w4", "Failed", "fourth", ended, arguments={"p00_run_id": "named", "p01_note": "laptop"})
    fake.workflow("w5", "Running", "going")
    sweep_namespace(cluster)
    status = {run_id: client.get_run(run).info.status for run_id, run in made.items()}
    assert status == {
        "first": "KILLED", "again": "RUNNING", "named": "KILLED", "laptop": "RUNNING", "going": "RUNNING"
    }  # fmt: skip
    parent = client.get_run(made["first"]).data.tags[mlflow_runs.PARENT_TAG]
    assert client.get_run(parent).info.status == "KILLED"


def test_looking_for_runs_makes_no_experiment(cluster: Cluster, client: mlflow.MlflowClient) -> None:
    sweep_namespace(cluster)
    assert [experiment.name for experiment in client.search_experiments()] == ["Default"]


def test_a_cluster_without_workflows_is_not_told_to_lack_the_trainer(fake: FakeCluster, cluster: Cluster) -> None:
    fake.faults = [Fault("workflows", status=404)]
    with pytest.raises(MoonflowError, match=r"rejected the request to list Workflows \(404"):
        sweep_namespace(cluster)


def test_without_mlflow_the_jobs_are_swept_all_the_same(
    fake: FakeCluster, cluster: Cluster, work: StepWork, placement: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    jobs = jobs_of(fake, work, placement)
    fake.faults = [Fault("workflows", status=503)]
    sweep_namespace(cluster)
    assert jobs["terminated"] in fake.deleted
