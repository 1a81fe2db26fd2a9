"""Turn a profile's Placement into a task's settings for Kubernetes.

With the launchers ``in-process`` and ``ranks`` the placement is that of the task's own pod. With ``trainjob`` that pod
only starts, watches and cancels a TrainJob: it is small, and passes the placement, which it finds in
``MOONFLOW_PLACEMENT``, on to the TrainJob's pods.
"""

from __future__ import annotations

from kfp import dsl, kubernetes

from components.runtime.launcher import body
from components.runtime.launcher.placement import Placement

SETTINGS = (*body.SETTINGS, "MOONFLOW_GITOPS_REPO", "MOONFLOW_FORGE")
"""Environment variables that every task gets from the ConfigMap ``moonflow``."""
WAITING_POD = Placement.model_validate({"cpu": "1", "memory": "2Gi"})
"""The pod that waits for a TrainJob."""
QUEUED_SECONDS = 30 * 24 * 3600
"""Seconds that a TrainJob may wait in its queue. They are added to the deadline of the waiting pod, which counts from
the start; the TrainJob's own deadline counts only while it runs."""


def place(task: dsl.PipelineTask, step: str, placement: Placement, image: str, retries: int) -> dsl.PipelineTask:
    """Set all that Kubernetes must know about a step's task; kfp.local uses only the retries and plain variables.

    Args:
        image: of the pod that waits for a TrainJob; other pods have ``placement.image``.
        retries: further attempts of a failed pod.
    """
    # KFP's cache does not know the object store: a hit could name a deleted prefix. A step finds its finished work by
    # the manifest, so running its task again costs a second.
    task.set_caching_options(enable_caching=False)
    seconds = int(placement.deadline_hours * 3600) + (QUEUED_SECONDS if placement.launcher == "trainjob" else 0)
    kubernetes.set_timeout(task, seconds)
    # Without backoff_max_duration KFP stops retrying an hour after the first attempt began. Argo ends all attempts
    # together after that time, so it turns the deadline of each attempt into one of the task.
    task.set_retry(retries, backoff_duration="60s", backoff_factor=2.0, backoff_max_duration=f"{seconds}s")
    if placement.launcher != "in-process":
        task.set_env_variable("MOONFLOW_PLACEMENT", placement.model_dump_json())
    if placement.launcher == "trainjob":
        _pod(task, WAITING_POD, image)
    else:
        _pod(task, placement, placement.image)
    _environment(task, step)
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
    # Kueue holds a pod with its label back until there is room. The wait counts towards the end of the retries, not
    # towards the pod's own timeout.
    if placement.queue:
        kubernetes.add_pod_label(task, body.QUEUE, placement.queue)
        if placement.priority:
            kubernetes.add_pod_label(task, body.PRIORITY, placement.priority)


def _environment(task: dsl.PipelineTask, step: str) -> None:
    # MOONFLOW_RUN_ID is Kubeflow's run id unless p00_run_id names an earlier run to continue. Promotions and TrainJobs
    # carry KFP_RUN_ID as well.
    for name in ("MOONFLOW_RUN_ID", "KFP_RUN_ID"):
        kubernetes.use_field_path_as_env(task, name, "metadata.labels['pipeline/runid']")
    for secret, keys in body.secrets(step).items():
        kubernetes.use_secret_as_env(task, secret, {key: key for key in keys}, optional=True)
    # Each key is optional: plain S3 needs no endpoint, and Kubeflow's MLflow plugin injects its own address. A step
    # that lacks a value says which one.
    kubernetes.use_config_map_as_env(
        task, config_map_name=body.CONFIG_MAP, config_map_key_to_env={key: key for key in SETTINGS}, optional=True
    )


def _keys(task: dsl.PipelineTask, step: str) -> None:
    """The keys that only one or two steps may see. All are optional: a step that needs a missing key says so."""
    if step in ("promote", "serve"):  # serve follows a pull request to its merge
        token = {"MOONFLOW_GIT_TOKEN": "MOONFLOW_GIT_TOKEN"}
        kubernetes.use_secret_as_env(task, "moonflow-git", token, optional=True)
    if step == "promote":
        kubernetes.use_secret_as_volume(task, "moonflow-signing", "/etc/moonflow/signing", optional=True)
    if step == "serve":
        public = "/etc/moonflow/signing-public"
        kubernetes.use_config_map_as_volume(task, "moonflow-signing-public", public, optional=True)
