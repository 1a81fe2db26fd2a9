"""The TrainJob of a step, as the JSON object that is posted (trainer.kubeflow.org/v1alpha1, Kubeflow Trainer 2.2, 2.3).

What a pod needs beyond the trainer's own fields (nodes, tolerations, volumes) is a runtime patch of the replicated
job ``node`` that the ClusterTrainingRuntime declares; variables of its container ``node`` belong to the trainer.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any

from components.runtime.launcher.placement import Placement
from components.runtime.launcher.work import WORKER, StepWork, torchrun
from components.runtime.steps import config_class
from components.runtime.tracking import tracker as tracking
from model.boundary.errors import MoonflowError
from model.rollout.keys import ENGINE_KEY, JUDGE_KEY

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
NODE = "node"  # the runtime's replicated job and its container
POOL = "moonflow.dev/pool"  # label and taint of a node pool
QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
WORK = "moonflow.dev/work-sha256"
RUN = "moonflow.dev/kfp-run"  # the pipeline run that waits for the job: not always the one whose work it does
CONFIG_MAP, SERVICE_ACCOUNT = "moonflow", "moonflow-train"
SETTINGS = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "MOONFLOW_STORE",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_PUBLIC_URI",
    "MLFLOW_EXPERIMENT_NAME",
    tracking.WAIT,
)
"""Environment variables that the ConfigMap ``moonflow`` gives to every task and every job."""
SECRETS: dict[str, tuple[str, ...]] = {
    "moonflow-store": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "moonflow-mlflow": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
}
"""What every task and every job is given of which Secret, where it is there: a pod identity may stand in for the keys
of the store, and an MLflow within the cluster may ask for none."""
SERVER_KEYS = "moonflow-server-keys"
"""The Secret with the keys of the servers that steps ask: SGLang replicas, and a judge."""
_KEY_OF = {"endpoints": ENGINE_KEY, "judge": JUDGE_KEY}  # a parameter that names servers -> the variable of their key
# Set by Kubeflow's MLflow plugin in the step's own pod: the training must report to the same run.
_PASSED_ON = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID")
# A name is also the stem of its pods' names and host names: 23 characters are left for `-node-0-<index>-<5 random>`.
_NAME_MAX = 40


def job_name(run_id: str, step: str) -> str:
    """The job's name, the same for each attempt of this step of this run: a DNS-1035 label of 40 characters at most."""
    digest = hashlib.sha256(f"{run_id}/{step}".encode()).hexdigest()[:8]
    readable = re.sub(r"[^a-z0-9]+", "-", f"{step}-{run_id}".lower())[: _NAME_MAX - len(digest) - 1].strip("-")
    return f"{readable}-{digest}"


def run_label() -> dict[str, str]:
    """The label by which a pipeline run finds the jobs that it waits for; empty outside of Kubeflow.

    KFP_RUN_ID is itself a label's value, of the step's pod. MOONFLOW_RUN_ID would not do: a run that continues an
    earlier one has that one's, while the earlier one may still be ending.
    """
    run = os.environ.get("KFP_RUN_ID", "")
    return {RUN: run} if run else {}


def secrets(step: str) -> dict[str, tuple[str, ...]]:
    """What a step's task and job are given of which Secret: SECRETS, and the keys of servers that its parameters name.

    MoonflowError if there is no such step.
    """
    fields = config_class(step).model_fields
    keys = tuple(key for name, key in _KEY_OF.items() if name in fields)
    return SECRETS | ({SERVER_KEYS: keys} if keys else {})


def train_job(
    work: StepWork, placement: Placement, namespace: str, owners: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """The TrainJob that does ``work``; ``owners`` are those of the step's own pod.

    MoonflowError for a placement that no cluster could serve as it is meant.
    """
    if not placement.image:
        raise MoonflowError(f"[task.{work.step}] image is empty: a TrainJob needs the training image's name")
    if placement.priority and not placement.queue:
        raise MoonflowError(f"[task.{work.step}] priority is Kueue's and means nothing without queue: set queue too")
    labels = {"app.kubernetes.io/part-of": "moonflow", "moonflow.dev/step": work.step, **run_label()}
    if placement.queue:
        labels[QUEUE] = placement.queue
    if placement.priority:
        labels[PRIORITY] = placement.priority
    metadata: dict[str, Any] = {
        "name": job_name(work.run_id, work.name),
        "namespace": namespace,
        "labels": labels,
        "annotations": {WORK: work.sha256, "moonflow.dev/run-id": work.run_id},
    }
    if owners:
        metadata["ownerReferences"] = owners
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": metadata,
        "spec": {
            "runtimeRef": {"apiGroup": GROUP, "kind": "ClusterTrainingRuntime", "name": placement.cluster_runtime},
            "activeDeadlineSeconds": max(1, int(placement.deadline_hours * 3600)),
            "trainer": {
                "image": placement.image,
                "command": _command(placement),
                "env": _environment(work),
                "numNodes": placement.nodes,
                "numProcPerNode": placement.processes,
                "resourcesPerNode": _resources(placement),
            },
            "runtimePatches": [_patch(placement)],
        },
    }


def _command(placement: Placement) -> list[str]:
    # torchrun takes nodes, ranks and the first pod's address from the PET_* variables that the runtime sets.
    return torchrun() if placement.nodes * placement.processes > 1 else ["python", "-m", WORKER]


def _environment(work: StepWork) -> list[dict[str, Any]]:
    plain = work.environment | {name: os.environ[name] for name in _PASSED_ON if os.environ.get(name)}
    rows: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in plain.items()]
    sources: list[tuple[tuple[str, ...], str, str]] = [(SETTINGS, "configMapKeyRef", CONFIG_MAP)]
    sources += [(names, "secretKeyRef", secret) for secret, names in secrets(work.step).items()]
    for names, kind, source in sources:
        # Optional key by key: plain S3 needs no endpoint and a pod identity no keys. A step says which one it misses.
        rows += [
            {"name": name, "valueFrom": {kind: {"name": source, "key": name, "optional": True}}}
            for name in names
            if name not in plain
        ]
    return rows


def _resources(placement: Placement) -> dict[str, Any]:
    devices = {}
    if placement.accelerators:
        devices[placement.accelerator] = str(placement.accelerators)
    if placement.rdma:
        devices[placement.rdma_resource] = str(placement.rdma)
    # Devices cannot be overcommitted: Kubernetes wants request and limit equal.
    return {
        "requests": {"cpu": placement.cpu, "memory": placement.memory, **devices},
        "limits": {"memory": placement.memory, **devices},
    }


def _patch(placement: Placement) -> dict[str, Any]:
    pod: dict[str, Any] = {"serviceAccountName": SERVICE_ACCOUNT}
    if placement.pool:
        pod["nodeSelector"] = {POOL: placement.pool}
        pod["tolerations"] = [{"key": POOL, "operator": "Equal", "value": placement.pool, "effect": "NoSchedule"}]
    if placement.shared_memory:
        pod["volumes"] = [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": placement.shared_memory}}]
        pod["containers"] = [{"name": NODE, "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}]}]
    job = {"name": NODE, "template": {"spec": {"template": {"spec": pod}}}}
    return {
        "manager": "moonflow.dev/launcher",
        "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}},
    }
