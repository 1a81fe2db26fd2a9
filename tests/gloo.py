"""Several real ranks over gloo, forked from one process that has imported torch already: milliseconds each."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.http_server import free_port

PRELOADED = ["model.train.engine", "pytest", "tests.drawn", "tests.gloo"]


def on_ranks(world: int, function: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """What ``function(rank, *args)`` returned on each of ``world`` ranks; it is a top-level function of its module."""
    port = free_port()
    multiprocessing.set_forkserver_preload(PRELOADED)
    mp.start_processes(_on_rank, (world, port, function, folder, args), nprocs=world, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def _on_rank(rank: int, world: int, port: int, function: Callable[..., Any], folder: Path, args: tuple) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}  # as torchrun does
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    torch.save(function(rank, *args), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def group_of(rank: int, world: int, size: int) -> dist.ProcessGroup:
    """The rank's group, where each ``size`` ranks that follow each other are one; every rank makes all groups."""
    return [dist.new_group(range(start, start + size)) for start in range(0, world, size)][rank // size]
