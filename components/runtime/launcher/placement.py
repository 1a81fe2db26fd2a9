"""Where a step runs and what it asks of the cluster: one table of the profile, ``[task]`` or ``[task.<step>]``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.runtime.config import StepConfig

LAUNCHERS = ("in-process", "ranks", "trainjob")


class Placement(StepConfig):
    """A local run heeds ``launcher`` and ``processes`` only; quantities are Kubernetes'."""

    launcher: Literal["in-process", "ranks", "trainjob"] = Field(
        "in-process",
        description="in-process: in the task's own pod; ranks: several processes there; trainjob: a Kubeflow TrainJob",
    )
    cpu: str = Field("1", description="CPU cores requested per pod")
    memory: str = Field("4Gi", description="memory requested and allowed per pod")
    accelerators: int = Field(0, ge=0, description="accelerators per pod; 0 = none")
    accelerator: str = Field("nvidia.com/gpu", description="the accelerators' resource name")
    nodes: int = Field(1, ge=1, description="pods of a TrainJob")
    processes: int = Field(1, ge=1, description="ranks per pod")
    pool: str = Field("", description="node pool: value of label and taint moonflow.dev/pool; empty = any")
    shared_memory: str = Field("", description="size of /dev/shm; empty = the container runtime's 64 MiB")
    rdma: int = Field(0, ge=0, description="RDMA devices per pod; 0 = none")
    rdma_resource: str = Field("rdma/hca", description="the RDMA devices' resource name")
    queue: str = Field("", description="Kueue LocalQueue; empty = not queued")
    priority: str = Field("", description="Kueue WorkloadPriorityClass of the job; empty = the queue's default")
    runtime: str = Field("moonflow-torchrun", description="ClusterTrainingRuntime of a TrainJob")
    deadline_hours: float = Field(24.0, gt=0, description="hours after which the task is stopped")
    image: str = Field("", description="container image of this task; empty = the run's")
