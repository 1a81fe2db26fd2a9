"""Cleans up after runs that have ended: deletes their unfinished TrainJobs, and ends their MLflow runs as KILLED.

Kubeflow Pipelines terminates a run by a deadline of 0, which skips the exit handler too, so nothing within the run can
do it. ``python -m components.runtime.launcher.sweep`` is the program of a CronJob of the platform. It looks
at the TrainJobs of its namespace whose owner is a Workflow, and at the runs in MLflow that still show RUNNING.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable

from components.runtime.launcher.api_server import Patience
from components.runtime.launcher.body import RUN, run_label
from components.runtime.launcher.cluster import Cluster
from components.runtime.launcher.reasons import Json, condition, name, owning_workflow, run_ended
from components.runtime.tracking import mlflow_runs
from model.boundary.errors import MoonflowError

OURS = "app.kubernetes.io/part-of=moonflow"
RUN_ID = "pipeline/runid"  # Kubeflow's label of a run's Workflow and of its pods
OUTAGE_S = 60.0  # ours: a run's report waits for the sweep, and the CronJob runs again soon


def sweep(cluster: Cluster | None = None) -> None:
    """Delete the unfinished jobs of this pipeline run, which is over, so that no step waits for them."""
    if not (label := run_label()):
        return
    cluster = cluster or Cluster.connect(Patience(outage=OUTAGE_S))
    for job in cluster.labelled(",".join(f"{key}={value}" for key, value in label.items())):
        if not _over(job):
            print(f"TrainJob {name(job)} outlived its run: deleted", flush=True)
            cluster.delete(name(job))


def sweep_namespace(cluster: Cluster) -> None:
    """Delete the unfinished jobs, and end the MLflow runs, of every run of the namespace that has ended."""
    # The Workflows are listed last: a job or MLflow run that was listed before is older than the list, so its Workflow
    # is missing only if it is deleted.
    jobs = cluster.labelled(OURS)
    unfinished = mlflow_runs.unfinished()
    workflows = cluster.workflows()
    there = {workflow["metadata"]["uid"]: workflow for workflow in workflows}
    for job in jobs:
        owner = owning_workflow(job["metadata"].get("ownerReferences") or [])
        if owner is None or _over(job) or not run_ended(there.get(owner["uid"])):
            continue
        # With its version: a run that takes the job over changes it.
        if cluster.delete(name(job), version=job["metadata"]["resourceVersion"]):
            run = job["metadata"].get("labels", {}).get(RUN, owner["name"])
            print(f"TrainJob {cluster.namespace}/{name(job)} deleted: its run {run} has ended", flush=True)
    for run_id, runs in unfinished.items():
        if _all_ended(run_id, workflows):
            mlflow_runs.kill(runs)
            print(f"{len(runs)} runs of {run_id} in MLflow end as KILLED: their pipeline run has ended", flush=True)


def _over(job: Json) -> bool:
    return bool(condition(job, "Complete") or condition(job, "Failed") or job["metadata"].get("deletionTimestamp"))


def _all_ended(run_id: str, workflows: Iterable[Json]) -> bool:
    """Whether Workflows of ``run_id`` are known and have ended. False for a run outside of Kubeflow."""
    known = False
    argument = re.compile(rf'p00_run_id[\\"\s:]+{re.escape(run_id)}[\\"]')
    for workflow in workflows:
        text = json.dumps(workflow.get("spec", {}))
        labelled = workflow["metadata"].get("labels", {}).get(RUN_ID) == run_id
        if not run_ended(workflow):
            if labelled or run_id in text:  # a run that continues an earlier one names it among its arguments
                return False
        elif labelled or argument.search(text):
            known = True
    return known


def main() -> None:
    try:
        sweep_namespace(Cluster.connect(Patience(outage=OUTAGE_S)))
    except MoonflowError as error:
        print(f"sweep: {error}", file=sys.stderr, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
