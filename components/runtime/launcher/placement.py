"""Where a step runs and what it asks of the cluster: one table of the profile, ``[task]`` or ``[task.<step>]``."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from components.runtime.config import StepConfig
from model.boundary.errors import MoonflowError
from model.parallel.layout import Layout

CPU = r"^\d+(\.\d+)?m?$"
MEMORY = r"^\d+(\.\d+)?([EPTGMK]i?)?$"  # the suffixes that KFP takes too
NAME = r"^([a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?)?$"  # of an object, usable as a label's value


class Placement(StepConfig):
    """Quantities are written as in Kubernetes. A local run uses ``launcher`` and ``processes`` only.

    A value that the chosen launcher cannot use is refused, not ignored.
    """

    launcher: Literal["in-process", "ranks", "trainjob"] = Field(
        "in-process",
        description="in-process: in the task's own pod; ranks: several processes there; trainjob: a Kubeflow TrainJob",
    )
    cpu: str = Field("1", pattern=CPU, description="CPU cores requested per pod")
    memory: str = Field("4Gi", pattern=MEMORY, description="memory requested and allowed per pod")
    accelerators: int = Field(0, ge=0, description="accelerators per pod; 0 = none")
    accelerator: str = Field("nvidia.com/gpu", description="the accelerators' resource name")
    nodes: int = Field(1, ge=1, description="pods of a TrainJob")
    processes: int = Field(1, ge=1, description="ranks per pod")
    zero_stage: int = Field(
        0, ge=0, le=3, description="what the ranks divide: 1 optimizer state, 2 gradients too, 3 weights too; 0 nothing"
    )
    expert_parallel: int = Field(1, ge=1, description="ranks that share one copy of the routed experts")
    sequence_parallel: int = Field(1, ge=1, description="ranks that share one row")
    pool: str = Field(
        "", pattern=NAME, description="node pool: value of label and taint moonflow.dev/pool; empty = any"
    )
    shared_memory: str = Field(
        "",
        pattern=rf"({MEMORY})|^$",
        description="size of /dev/shm, part of the memory; empty = the container runtime's 64 MiB",
    )
    rdma: int = Field(0, ge=0, description="RDMA devices per pod; 0 = none")
    rdma_resource: str = Field("rdma/hca", description="the RDMA devices' resource name")
    queue: str = Field("", pattern=NAME, description="Kueue LocalQueue; empty = not queued")
    priority: str = Field(
        "", pattern=NAME, description="Kueue WorkloadPriorityClass of the job; empty = the queue's default"
    )
    runtime: str = Field("moonflow-torchrun", description="ClusterTrainingRuntime of a TrainJob")
    runtime_class: str = Field(
        "",
        pattern=NAME,
        description="RuntimeClass of a TrainJob's pods, e.g. gvisor around model-written programs: "
        "ClusterTrainingRuntime <runtime>-<runtime_class> asks for it; empty = the node's default",
    )
    deadline_hours: float = Field(
        24.0, gt=0, description="hours from the first attempt after which the task is stopped and not retried"
    )
    image: str = Field(
        "",
        description="container image of this task; empty = run.image, or run.train_image if it asks for accelerators",
    )

    @property
    def ranks(self) -> int:
        """Processes over all pods."""
        return self.nodes * self.processes

    @property
    def cluster_runtime(self) -> str:
        """The ClusterTrainingRuntime's name: a TrainJob cannot change the RuntimeClass of its runtime's pods."""
        return f"{self.runtime}-{self.runtime_class}" if self.runtime_class else self.runtime

    @property
    def layout(self) -> Layout:
        """What these ranks divide."""
        return Layout(self.zero_stage, self.expert_parallel, self.sequence_parallel)

    @model_validator(mode="after")
    def _used_by_launcher(self) -> Self:
        if self.launcher != "trainjob" and (self.nodes > 1 or self.rdma):
            key = "nodes" if self.nodes > 1 else "rdma"
            raise ValueError(f'{key} = {getattr(self, key)} needs launcher = "trainjob"')
        if self.launcher != "trainjob" and self.runtime_class:
            # Kubeflow Pipelines has no setting for it.
            raise ValueError(f'runtime_class = "{self.runtime_class}" needs launcher = "trainjob"')
        if self.launcher == "in-process" and self.processes > 1:
            raise ValueError(f'processes = {self.processes} needs launcher = "ranks" or "trainjob"')
        try:
            self.layout.check(self.ranks)
        except MoonflowError as error:
            raise ValueError(str(error)) from None
        return self
