"""Weights into a folder's safetensors files, a tensor at a time (source: the released checkpoint's layout)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from model.boundary.errors import MoonflowError
from model.checkpoint.file_names import INDEX, weights_file


def write_index(folder: Path, file_of: Mapping[str, str], total_bytes: int) -> None:
    """Say which file of the folder holds which tensor."""
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(file_of.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


class ShardWriter:
    """Writes ``model.safetensors``, or several files and their index.

    Memory holds the tensors of one file. Until ``finish``, files have names that no reader looks for.

    Attributes:
        shard_bytes: of tensors in one file, from now on; a tensor that is larger has a file of its own.
    """

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self._folder, self.shard_bytes = folder, shard_bytes
        self._waiting: dict[str, Tensor] = {}
        self._waiting_bytes = self._total_bytes = 0
        self._written: list[tuple[Path, list[str]]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Copy a tensor, and write a file when one is full.

        Raises:
            MoonflowError: the file cannot be written, for lack of space for example.
        """
        if self._waiting and self._waiting_bytes + tensor.nbytes > self.shard_bytes:
            self._write()
        # A copy, since the tensor may be mapped from a file that is removed meanwhile.
        self._waiting[name] = tensor.clone(memory_format=torch.contiguous_format)
        self._waiting_bytes += tensor.nbytes

    def finish(self) -> None:
        """Write what is left, and give the files their names. Raises what ``add`` raises."""
        self._write()
        file_of: dict[str, str] = {}
        for number, (path, names) in enumerate(self._written):
            file = weights_file(number, len(self._written))
            path.rename(self._folder / file)
            file_of |= dict.fromkeys(names, file)
        if len(self._written) > 1:
            write_index(self._folder, file_of, self._total_bytes)

    def _write(self) -> None:
        if not self._waiting:
            return
        path = self._folder / f"{len(self._written) + 1:05d}.unfinished"
        try:
            save_file(self._waiting, path, metadata={"format": "pt"})
        except (SafetensorError, OSError) as error:
            raise MoonflowError(f"{path} cannot be written ({error}); free space or choose another folder") from error
        self._written.append((path, list(self._waiting)))
        self._total_bytes += self._waiting_bytes
        self._waiting, self._waiting_bytes = {}, 0
