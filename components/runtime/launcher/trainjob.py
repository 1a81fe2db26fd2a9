"""A step as a TrainJob: created or attached to, followed to its end with its log, and cancelled with its step.

**One job for one step of one run.** The job's name follows from run and step. An attempt that starts after the pod of
the one before it died finds the job by this name and attaches to it. So does a pipeline run that continues an earlier
one; it also takes over the job's label and owner. A job of the same name with other parameters is an error. A failed
job is deleted and created again by the next attempt, and training goes on from its newest manifest.

**Who ends the job.** The step's pod gets SIGTERM when a user terminates the run, but also when the pod is evicted (node
drain, preemption) or deleted. Only the first is meant for the job. The run's Workflow, which owns the pod, tells them
apart: while the run goes on, the job is left alone and the next attempt attaches to it; when the run has ended or is
being ended, the job is deleted. If the Workflow cannot be read, the pod's condition ``DisruptionTarget`` decides, which
Kubernetes sets only before it evicts a pod. Without it the job is deleted: it costs less to resume a training from its
last manifest than to keep accelerators for a job that nobody waits for. After SIGKILL there is no time for any of this,
and KFP's process in the pod may end the container before our request is sent. Then the job goes on, and ``sweep``
deletes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import urllib3
from kubernetes.client.exceptions import ApiException

from components.runtime.launcher import reasons
from components.runtime.launcher.body import NODE, WORK, job_name, run_label, train_job
from components.runtime.launcher.cluster import Cluster
from components.runtime.launcher.logs import PodLog
from components.runtime.launcher.notices import Notices
from components.runtime.launcher.placement import Placement
from components.runtime.launcher.queued import Queued
from components.runtime.launcher.reasons import Json, condition, name
from components.runtime.launcher.signals import stop_on_sigterm
from components.runtime.launcher.watching import follow
from components.runtime.launcher.work import StepWork
from model.boundary.errors import MoonflowError
from model.train.stop import Terminated

INDEX = "batch.kubernetes.io/job-completion-index"
JOB = "jobset.sigs.k8s.io/replicatedjob-name"


def run(
    work: StepWork,
    placement: Placement,
    done: Callable[[], bool],
    cluster: Cluster | None = None,
    queued: Callable[[float], object] = lambda _: None,
) -> None:
    """Have a TrainJob do ``work`` and return when it is Complete; ``done`` tells whether the step's output exists.

    ``queued`` is called once with the seconds from the job's creation until its first pod had a node, if known.

    Raises MoonflowError with the reason in one line if the job fails, cannot start, or belongs to other parameters.
    """
    cluster = cluster or Cluster.connect()
    owners = _owners(cluster)
    with stop_on_sigterm():
        try:
            job = _attach(cluster, work, placement, owners, done)
            _wait(cluster, work, placement, name(job), Queued(cluster, queued))
        except (Terminated, KeyboardInterrupt):
            _cancel(cluster, work, owners)
            raise
    if not done():
        # Otherwise each further attempt would find it Complete.
        cluster.delete(job_name(work.run_id, work.name))
        raise MoonflowError(
            f"{_where(cluster, work)} is Complete, but {work.step} has no complete manifest in the object store: check "
            f"that ConfigMap moonflow in namespace {cluster.namespace} names the same MOONFLOW_STORE, then run again"
        )


def _attach(
    cluster: Cluster, work: StepWork, placement: Placement, owners: list[Json], done: Callable[[], bool]
) -> Json:
    """The job of ``work``: the one that is there, or a new one."""
    where = _where(cluster, work)
    body = train_job(work, placement, cluster.namespace, owners)
    while True:
        if (made := cluster.create(body)) is not None:
            print(f"{where} created", flush=True)
            return made
        found = cluster.get(name(body))
        if found is None:
            time.sleep(cluster.patience.backoff)
            continue
        if not found["metadata"].get("deletionTimestamp"):
            if found["metadata"].get("annotations", {}).get(WORK) != work.sha256:
                raise MoonflowError(
                    f"{where} was started with other parameters or inputs: restore them, use a new run id, or delete "
                    f"it (kubectl delete trainjob -n {cluster.namespace} {name(found)})"
                )
            failed = condition(found, "Failed")
            if not failed and not (condition(found, "Complete") and not done()):
                print(f"{where} is there already: attached", flush=True)
                if not run_label().items() <= found["metadata"].get("labels", {}).items():
                    # It belongs to another pipeline run, whose end or deletion would delete it.
                    cluster.adopt(name(found), run_label(), owners)
                if _differs(found["spec"], body["spec"]):
                    print(f"{where} runs with the placement of its first attempt", flush=True)
                return found
            why = reasons.of_failure(found, cluster.pods(name(found)), ()) if failed else "it left no manifest"
            print(f"{where} had ended before ({why}): started again, it resumes from its last checkpoint", flush=True)
            cluster.delete(name(found))
        _until_gone(cluster, name(body), found["metadata"].get("uid", ""))


def _until_gone(cluster: Cluster, job: str, uid: str) -> None:
    limit = time.monotonic() + cluster.patience.gone
    for seen in follow(cluster, job):
        if seen.job is None or seen.job["metadata"].get("uid", "") != uid:
            return
        if time.monotonic() > limit:
            raise MoonflowError(
                f"TrainJob {cluster.namespace}/{job} is still there {cluster.patience.gone:.0f} s after its "
                "deletion: look at its finalizers and its pods, then run again"
            )


def _wait(cluster: Cluster, work: StepWork, placement: Placement, job_id: str, queued: Queued) -> None:
    """Print the job's state, log and trouble, and return when it is Complete."""
    where = _where(cluster, work)
    log, last, notices = PodLog(cluster), list[Json](), Notices(cluster, where)
    told, disrupted, since = "", set[str](), 0.0
    try:
        for seen in follow(cluster, job_id):
            job = seen.job
            if job is None:
                raise MoonflowError(
                    f"{where} was deleted by someone else: run again, it resumes from its last checkpoint"
                )
            pods = cluster.pods(job_id)
            if (outside := _outside(pods, placement)) is not None:
                cluster.delete(job_id)  # the programs that it runs would not be confined
                raise MoonflowError(
                    f"{where}: pod {name(outside)} is not of RuntimeClass {placement.runtime_class}: let "
                    f"ClusterTrainingRuntime {placement.cluster_runtime} ask for it, and run again"
                )
            queued.look(job, pods)
            last = pods or last  # an ended job's pods may be gone: the last ones seen tell the reason
            if (first := _first(pods)) is not None:
                log.follow(name(first))
            if condition(job, "Complete") or condition(job, "Failed"):
                log.end()
            if condition(job, "Complete"):
                return
            if condition(job, "Failed"):
                raise MoonflowError(f"{where} failed: {reasons.of_failure(job, _last_attempt(last), list(log.tail))}")
            for pod in pods:
                if name(pod) not in disrupted and (why := reasons.disruption(pod)) is not None:
                    disrupted.add(name(pod))
                    print(
                        f"{where}: pod {name(pod)} is taken away ({why}); the job goes on from its last checkpoint",
                        flush=True,
                    )
            state = _state(job, pods, placement)
            if state and state != told:
                print(f"{where}: {state}", flush=True)
            told = state
            noticed = notices.look(job, pods, placement.nodes, bool(placement.queue))
            trouble = reasons.unstartable(pods) or noticed
            since = (since or time.monotonic()) if trouble else 0.0
            if trouble and time.monotonic() - since > cluster.patience.unstartable:
                cluster.delete(job_id)  # it would keep its quota until the deadline
                raise MoonflowError(f"{where} cannot start: {trouble}; fix it and run again")
    except MoonflowError:
        log.end()  # a request to end must not wait for it
        raise


def _cancel(cluster: Cluster, work: StepWork, owners: list[Json]) -> None:
    where, patience = _where(cluster, work), cluster.patience
    if (why := _goes_on(cluster, owners)) is not None:
        print(f"this pod is taken away ({why}): {where} goes on, the next attempt attaches to it", flush=True)
        return
    try:
        cluster.delete(job_name(work.run_id, work.name), within=patience.stop)
        print(f"{where} deleted: its step was cancelled", flush=True)
    except MoonflowError as error:
        print(f"{where} could not be deleted: {error}", flush=True)


def _goes_on(cluster: Cluster, owners: list[Json]) -> str | None:
    """Why this process is ended although its run goes on; None if the run has ended, or if nothing is known."""
    if (owner := reasons.owning_workflow(owners)) is not None:
        # One request only: there may be little time, and the job may have to be deleted as well.
        with suppress(ApiException, urllib3.exceptions.HTTPError, OSError):
            ended = reasons.run_ended(cluster.workflow(owner["name"]))
            return None if ended else f"its run {owner['name']} goes on"
    pod = cluster.own_pod()
    return reasons.disruption(pod) if pod is not None else None


def _owners(cluster: Cluster) -> list[Json]:
    """The owners of the step's own pod, in KFP the run's Workflow: the job is deleted with them, not with the pod."""
    pod = cluster.own_pod() or {}
    rows = pod.get("metadata", {}).get("ownerReferences") or []
    return [{key: row[key] for key in ("apiVersion", "kind", "name", "uid")} for row in rows]


def _state(job: Json, pods: list[Json], placement: Placement) -> str:
    """What the job is waiting for or doing, for people; "" once its pods have ended."""
    if condition(job, "Suspended") or job["spec"].get("suspend"):
        return f"queued in LocalQueue {placement.queue}" if placement.queue else "suspended"
    alive = reasons.alive(pods)
    for pod in alive:
        if pod.get("status", {}).get("phase") == "Pending":
            unplaced = next(
                (
                    row.get("message", "")
                    for row in pod["status"].get("conditions") or []
                    if row["type"] == "PodScheduled" and row["status"] == "False"
                ),
                "",
            )
            why = reasons.unstartable([pod]) or (f"not scheduled: {unplaced}" if unplaced else "starting")
            return f"pod {name(pod)} pending: {why}"
    if alive:
        return f"running on {len(alive)} of {placement.nodes} pods"
    return "" if pods else "waiting for its pods"


def _outside(pods: list[Json], placement: Placement) -> Json | None:
    """A pod that is not of the RuntimeClass that the placement asks for."""
    wanted = placement.runtime_class
    return next((pod for pod in pods if wanted and pod.get("spec", {}).get("runtimeClassName") != wanted), None)


def _first(pods: list[Json]) -> Json | None:
    """The newest pod of rank 0 whose container has started."""
    for pod in reversed(pods):
        labels = pod["metadata"].get("labels", {})
        if labels.get(INDEX, "0") != "0" or labels.get(JOB, NODE) != NODE:
            continue
        rows = pod.get("status", {}).get("containerStatuses") or []
        if any(row["name"] == NODE and not row.get("state", {}).get("waiting") for row in rows):
            return pod
    return None


def _last_attempt(pods: list[Json]) -> list[Json]:
    """The newest pod of each rank: the job has survived what ended the earlier ones."""
    newest = {}
    for pod in pods:
        labels = pod["metadata"].get("labels", {})
        newest[tuple(labels.get(key, "") for key in (JOB, INDEX))] = pod
    return list(newest.values())


def _differs(found: Json, wanted: Json) -> bool:
    """Whether the trainer was asked for something else; the rest of a spec is also written by Kueue and Trainer."""
    keys = ("image", "numNodes", "numProcPerNode", "resourcesPerNode")
    return any(found.get("trainer", {}).get(key) != wanted["trainer"][key] for key in keys)


def _where(cluster: Cluster, work: StepWork) -> str:
    return f"TrainJob {cluster.namespace}/{job_name(work.run_id, work.name)}"
