"""The processes that train one model together (source: ours).

torch is imported where it is used: a step that trains nothing is one rank, too, and starts without it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Self, TypeVar

from model.network.expert_share import ExpertShare
from model.parallel.layout import Layout

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed import ProcessGroup

T = TypeVar("T")
_SLOWEST = timedelta(hours=6)  # a rank waits so long for the slowest one's episodes


@dataclass(frozen=True)
class Ranks:
    """This process's place among the ranks.

    Ranks of one row (sequence parallel) are neighbours, and so are those that share the experts. ``Ranks()`` is one
    process by itself: all its reductions do nothing.

    Attributes:
        rank, world: this process's number and how many there are.
        everyone: all ranks, or None.
        sequence, experts: those that share this rank's rows, or its experts; None where nothing is divided.
        expert_copies: the ranks that hold the same experts as this one, or None.
        patient: all ranks, in a group that waits for hours; None for one process.
    """

    rank: int = 0
    world: int = 1
    layout: Layout = field(default_factory=Layout)
    everyone: ProcessGroup | None = None
    sequence: ProcessGroup | None = None
    experts: ProcessGroup | None = None
    expert_copies: ProcessGroup | None = None
    patient: ProcessGroup | None = None

    @classmethod
    def join(cls, layout: Layout) -> Self:
        """The ranks that torchrun started (RANK, WORLD_SIZE, ...); this process alone where it did not.

        Every rank must call it, once. NCCL where there are GPUs, else gloo.
        """
        import torch
        import torch.distributed as dist

        world = int(os.environ.get("WORLD_SIZE", "1"))
        layout.check(world)
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        if world == 1:
            return cls(layout=layout)
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        rank = dist.get_rank()
        sequence, _ = _neighbours(rank, world, layout.sequence_parallel)
        experts, copies = _neighbours(rank, world, layout.expert_parallel)
        patient = dist.new_group(backend="gloo", timeout=_SLOWEST)
        return cls(rank, world, layout, dist.group.WORLD, sequence, experts, copies, patient)

    @property
    def data_ranks(self) -> int:
        """How many different parts a global batch is cut into."""
        return self.world // self.layout.sequence_parallel

    @property
    def data_rank(self) -> int:
        """Which of these parts this rank reads."""
        return self.rank // self.layout.sequence_parallel

    @property
    def expert_share(self) -> ExpertShare:
        """Which of the routed experts this rank holds: what its model is built and loaded with."""
        parts = self.layout.expert_parallel
        return ExpertShare(self.rank % parts, parts)

    @property
    def first(self) -> bool:
        """Whether this rank speaks for all: it alone logs, and writes what all hold."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where this rank computes: its own GPU if there is one."""
        import torch

        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")

    def sum_(self, x: Tensor) -> Tensor:
        """``x`` becomes its sum over all ranks."""
        if self.world > 1:
            import torch.distributed as dist

            dist.all_reduce(x, group=self.everyone)
        return x

    def max_(self, x: Tensor) -> Tensor:
        """``x`` becomes its largest value over all ranks."""
        if self.world > 1:
            import torch.distributed as dist

            dist.all_reduce(x, dist.ReduceOp.MAX, group=self.everyone)
        return x

    def any(self, mine: bool) -> bool:
        """Whether ``mine`` is true on some rank."""
        if self.world == 1:
            return mine
        import torch

        return bool(self.max_(torch.tensor(float(mine), device=self.device)))

    def gather(self, mine: T) -> list[T]:
        """What every rank gave, in their order, on every rank; it travels as a pickle. The slowest may take hours."""
        if self.world == 1:
            return [mine]
        import torch.distributed as dist

        given: list[T | None] = [None] * self.world
        dist.all_gather_object(given, mine, group=self.patient)
        return given  # type: ignore[return-value]

    def share(self, work: Sequence[T]) -> Sequence[T]:
        """This rank's part of ``work``, which is dealt out in turn; ``joined`` is the inverse."""
        return work[self.rank :: self.world]

    def joined(self, mine: Sequence[T]) -> list[T]:
        """What the ranks made of their shares, one of each, in the order of the whole work; on every rank."""
        parts = self.gather(list(mine))
        return [parts[n % self.world][n // self.world] for n in range(sum(map(len, parts)))]

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier(group=self.everyone)


def _neighbours(rank: int, world: int, size: int) -> tuple[ProcessGroup | None, ProcessGroup | None]:
    """This rank's group of ``size`` neighbours, and the group of ranks at the same place in theirs."""
    import torch.distributed as dist

    if size == 1:
        return None, dist.group.WORLD
    blocks = [list(range(start, start + size)) for start in range(0, world, size)]
    across = [list(range(place, world, size)) for place in range(size)]
    # Every rank has to make every group, in one order.
    made = {tuple(members): dist.new_group(members) for members in blocks + across}
    mine, others = (next(group for group in groups if rank in group) for groups in (blocks, across))
    return made[tuple(mine)], made[tuple(others)]
