"""The processes that train one model together, and how they divide the work (source: ours).

A *layout* says what is divided: the optimizer's state, gradients and weights (ZeRO, arXiv 1910.02054), the routed
experts (expert parallel), the columns of a row (sequence parallel, DeepSpeed-Ulysses, arXiv 2309.14509). The numbers
do not depend on it, so a run may go on under another one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from model.errors import MoonflowError


@dataclass(frozen=True)
class Layout:
    """What the ranks divide.

    Attributes:
        zero_stage: 0 every rank holds everything; 1 the optimizer's state is divided; 2 gradients too; 3 weights too.
        expert_parallel: ranks that share one copy of the routed experts.
        sequence_parallel: ranks that share one row.
    """

    zero_stage: int = 0
    expert_parallel: int = 1
    sequence_parallel: int = 1

    def check(self, world: int) -> None:
        """MoonflowError naming the key that does not fit ``world`` ranks."""
        if self.zero_stage not in (0, 1, 2, 3):
            raise MoonflowError(f"zero_stage = {self.zero_stage}: choose 0, 1, 2 or 3")
        for key in ("expert_parallel", "sequence_parallel"):
            size = getattr(self, key)
            if size < 1 or world % size:
                raise MoonflowError(f"{key} = {size} does not divide {world} ranks: choose a divisor")


Group = dist.ProcessGroup | None  # None: this process alone


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
    """

    rank: int = 0
    world: int = 1
    layout: Layout = field(default_factory=Layout)
    everyone: Group = None
    sequence: Group = None
    experts: Group = None
    expert_copies: Group = None

    @classmethod
    def join(cls, layout: Layout) -> Self:
        """The ranks that torchrun started (RANK, WORLD_SIZE, ...); this process alone where it did not.

        Every rank must call it, once. NCCL where there are GPUs, else gloo.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        layout.check(world)
        if world == 1:
            return cls(layout=layout)
        if not dist.is_initialized():
            backend = "gloo"
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
                backend = "cpu:gloo,cuda:nccl"
            dist.init_process_group(backend)
        rank = dist.get_rank()
        sequence, _ = _neighbours(rank, world, layout.sequence_parallel)
        experts, copies = _neighbours(rank, world, layout.expert_parallel)
        return cls(rank, world, layout, dist.group.WORLD, sequence, experts, copies)

    @property
    def data_ranks(self) -> int:
        """How many different parts a global batch is cut into."""
        return self.world // self.layout.sequence_parallel

    @property
    def data_rank(self) -> int:
        """Which of these parts this rank reads."""
        return self.rank // self.layout.sequence_parallel

    @property
    def first(self) -> bool:
        """Whether this rank speaks for all: it alone logs, and writes what all hold."""
        return self.rank == 0

    def sum_(self, x: Tensor) -> Tensor:
        """``x`` becomes its sum over all ranks."""
        if self.world > 1:
            dist.all_reduce(x, group=self.everyone)
        return x

    def max_(self, x: Tensor) -> Tensor:
        """``x`` becomes its largest value over all ranks."""
        if self.world > 1:
            dist.all_reduce(x, dist.ReduceOp.MAX, group=self.everyone)
        return x

    def wait(self) -> None:
        """Until every rank is here."""
        if self.world > 1:
            dist.barrier(group=self.everyone)

    def from_first(self, value: Any) -> Any:
        """What the first rank passed in, on every rank (pickled between processes that trust each other)."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, src=0, group=self.everyone)
        return box[0]


def _neighbours(rank: int, world: int, size: int) -> tuple[Group, Group]:
    """This rank's group of ``size`` neighbours, and the group of ranks at the same place in theirs."""
    if size == 1:
        return None, dist.group.WORLD
    blocks = [list(range(start, start + size)) for start in range(0, world, size)]
    across = [list(range(place, world, size)) for place in range(size)]
    # Every rank has to make every group, in one order.
    made = {tuple(members): dist.new_group(members) for members in blocks + across}
    mine, others = (next(group for group in groups if rank in group) for groups in (blocks, across))
    return made[tuple(mine)], made[tuple(others)]
