"""What Kubernetes must know of a task: from a profile's Placement to KFP's platform settings.

In-process and ``ranks``: the task's own pod gets the placement. ``trainjob``: that pod only starts, watches and cancels
the TrainJob, so it is small, and the placement travels to it in ``MOONFLOW_PLACEMENT`` for the TrainJob's pods.
"""

from __future__ import annotations

from kfp import dsl, kubernetes

from components.runtime.launcher import body
from components.runtime.launcher.placement import Placement

SETTINGS = (*body.SETTINGS, "MOONFLOW_GITOPS_REPO", "MOONFLOW_FORGE")
"""Environment variables that the ConfigMap ``moonflow`` gives to every task."""
WAITING_POD = Placement.model_validate({"cpu": "1", "memory": "2Gi"})
"""The pod that waits for a TrainJob."""
QUEUED_SECONDS = 30 * 24 * 3600
"""How long a TrainJob may wait in its queue: its own deadline counts while it runs, the waiting pod's all the time."""


def place(task: dsl.PipelineTask, step: str, placement: Placement, image: str, retries: int) -> dsl.PipelineTask:
    """Say everything Kubernetes must know of a step's task. kfp.local heeds only the retries and plain variables.

    ``image`` is that of a pod that waits for a TrainJob. ``retries`` are further attempts of a failed pod.
    """
    # KFP's cache knows nothing of the object store: a hit could name a deleted prefix. Steps find their own finished
    # work by its manifest, so a task that runs again costs a second.
    task.set_caching_options(enable_caching=False)
    seconds = int(placement.deadline_hours * 3600) + (QUEUED_SECONDS if placement.launcher == "trainjob" else 0)
    kubernetes.set_timeout(task, seconds)
    # Without backoff_max_duration KFP stops retrying an hour after the first attempt began. Argo reads it as the end of
    # all attempts together, so it makes the deadline, which alone would start anew with each attempt, the task's.
    task.set_retry(retries, backoff_duration="60s", backoff_factor=2.0, backoff_max_duration=f"{seconds}s")
    if placement.launcher != "in-process":
        task.set_env_variable("MOONFLOW_PLACEMENT", placement.model_dump_json())
    if placement.launcher == "trainjob":
        _pod(task, WAITING_POD, image)
    else:
        _pod(task, placement, placement.image)
    _environment(task)
    _keys(task, step)
    return task


def _pod(task: dsl.PipelineTask, placement: Placement, image: str) -> None:
    """Image, resources, node pool, shared memory and queue of the task's own pod."""
    task.set_container_image(image)
    task.set_cpu_request(placement.cpu).set_memory_request(placement.memory).set_memory_limit(placement.memory)
    if placement.accelerators:
        task.set_accelerator_type(placement.accelerator).set_accelerator_limit(placement.accelerators)
    if placement.pool:
        kubernetes.add_node_selector(task, body.POOL, placement.pool)
        kubernetes.add_toleration(task, key=body.POOL, operator="Equal", value=placement.pool, effect="NoSchedule")
    if placement.shared_memory:
        kubernetes.empty_dir_mount(
            task,
            volume_name="shared-memory",
            mount_path="/dev/shm",
            medium="Memory",
            size_limit=placement.shared_memory,
        )
    # Kueue holds a pod that carries its label until there is room. Such waiting counts for the retries, not for the
    # pod's own timeout.
    if placement.queue:
        kubernetes.add_pod_label(task, body.QUEUE, placement.queue)
        if placement.priority:
            kubernetes.add_pod_label(task, body.PRIORITY, placement.priority)


def _environment(task: dsl.PipelineTask) -> None:
    # The run's own id, unless p00_run_id names an earlier run to continue; promotions and TrainJobs are
    # marked with Kubeflow's as well.
    for name in ("MOONFLOW_RUN_ID", "KFP_RUN_ID"):
        kubernetes.use_field_path_as_env(task, name, "metadata.labels['pipeline/runid']")
    for secret, keys in body.SECRETS.items():
        kubernetes.use_secret_as_env(task, secret, {key: key for key in keys}, optional=True)
    # Optional key by key: plain S3 needs no endpoint, and Kubeflow's MLflow plugin injects its own address. A step that
    # misses a value says which one.
    kubernetes.use_config_map_as_env(
        task, config_map_name=body.CONFIG_MAP, config_map_key_to_env={key: key for key in SETTINGS}, optional=True
    )


def _keys(task: dsl.PipelineTask, step: str) -> None:
    """What only one or two steps may see. All optional: a step that needs a missing one says so."""
    if step in ("promote", "serve"):  # serve follows a pull request to its merge
        token = {"MOONFLOW_GIT_TOKEN": "MOONFLOW_GIT_TOKEN"}
        kubernetes.use_secret_as_env(task, "moonflow-git", token, optional=True)
    if step == "promote":
        kubernetes.use_secret_as_volume(task, "moonflow-signing", "/etc/moonflow/signing", optional=True)
    if step == "serve":
        public = "/etc/moonflow/signing-public"
        kubernetes.use_config_map_as_volume(task, "moonflow-signing-public", public, optional=True)
