"""Optimizer state in slices: any number of ranks can read what any other number wrote, at any ZeRO stage (ours).

A tensor is known by its key, ``<parameter name>/<slot>``, and by its full shape; where it is cut depends on the ranks
that wrote it. Each rank writes one safetensors file, ``optimizer-<rank>-of-<world>.safetensors``, of flat pieces named
``<key>@<start>``, with the full shapes as JSON in the file's header. torch's distributed checkpoint could do this too,
but keeps its index as a pickle (``.metadata``), and no pickle is read from storage here.

Shape legend: n elements of a slice, in the order of the flattened (row-major) tensor.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.boundary.errors import MoonflowError

_NAME = re.compile(r"optimizer-(\d{5})-of-(\d{5})\.safetensors")
_SHAPES = "shapes"


def file_name(rank: int = 0, world: int = 1) -> str:
    """The file that ``rank`` of ``world`` writes."""
    return f"optimizer-{rank:05d}-of-{world:05d}.safetensors"


def is_slices(name: str) -> bool:
    """Whether a file of that name holds slices."""
    return _NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class Slice:
    """Elements ``start`` to ``start + n`` of the flattened tensor ``key`` of full ``shape``.

    ``key`` is ``<parameter name>/<slot>``; a parameter has the name that it has in the whole model, on every rank.
    """

    key: str
    shape: tuple[int, ...]
    start: int
    values_n: Tensor


def as_slices(tensors: Mapping[str, Tensor | Slice]) -> list[Slice]:
    """The slices of a rank's state, given by key as whole tensors, or as slices of those that it holds in part."""
    return [
        value if isinstance(value, Slice) else Slice(key, tuple(value.shape), 0, value.reshape(-1))
        for key, value in tensors.items()
    ]


def write_slices(folder: Path, slices: Iterable[Slice], rank: int = 0, world: int = 1) -> Path:
    """Write this rank's file, also when it has no slices; returns its path.

    The slices of all ranks together must cover every tensor; elements that several ranks hold may be written by one or
    more of them. Raises ValueError if a slice is not within its tensor.
    """
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for one in slices:
        if one.start < 0 or one.start + one.values_n.numel() > math.prod(one.shape):
            raise ValueError(f"{one.key}: a slice of {one.values_n.numel()} at {one.start} is outside of {one.shape}")
        tensors[f"{one.key}@{one.start}"] = one.values_n.reshape(-1).contiguous()
        shapes[one.key] = one.shape
    path = folder / file_name(rank, world)
    # One entry: safetensors writes several in a random order, and the same state should give the same bytes.
    save_file(tensors, path, metadata={_SHAPES: json.dumps(shapes)})
    return path


class SliceReader(Mapping[str, Tensor]):
    """The optimizer state of a checkpoint folder, read slice by slice: only what is asked for takes memory.

    A mapping from keys to whole tensors, and a context manager that holds the files open.

    Attributes:
        shapes: key -> full shape of every tensor that was saved.

    Raises:
        MoonflowError: there is no such file, or one is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._pieces: dict[str, list[tuple[int, int, Any, str]]] = {}  # key -> (start, end, open file, its tensor)
        self._open = ExitStack()
        try:
            for path in self._files():
                self._index(path)
        except BaseException:
            self._open.close()
            raise

    def _files(self) -> list[Path]:
        found = {path.name: path for path in self.folder.glob("optimizer-*.safetensors") if is_slices(path.name)}
        if not found:
            raise MoonflowError(
                f"{self.folder / file_name()} is missing; choose a checkpoint with training state, or an earlier one"
            )
        worlds = {int(name[-17:-12]) for name in found}
        wanted = [file_name(rank, world) for world in sorted(worlds) for rank in range(world)]
        for name in wanted:
            if len(worlds) > 1 or name not in found:
                raise MoonflowError(
                    f"{self.folder / name} is missing, or others are left over (there are {', '.join(sorted(found))}); "
                    "choose an earlier checkpoint"
                )
        return [found[name] for name in wanted]

    def _index(self, path: Path) -> None:
        try:
            file = self._open.enter_context(safe_open(path, framework="pt"))
            shapes = json.loads(file.metadata()[_SHAPES])
            for name in file.keys():  # noqa: SIM118 (it is not a dict)
                key, _, start = name.rpartition("@")
                count = file.get_slice(name).get_shape()[0]
                self.shapes[key] = tuple(shapes[key])
                self._pieces.setdefault(key, []).append((int(start), int(start) + count, file, name))
        except (OSError, SafetensorError, TypeError, KeyError, ValueError, IndexError) as error:
            raise MoonflowError(f"{path} cannot be read ({error}); choose an earlier checkpoint") from error

    def read(self, key: str, start: int = 0, length: int | None = None) -> Tensor:
        """Elements ``start`` to ``start + length`` (to the end without one) of the flattened tensor ``key``: [length].

        Raises:
            MoonflowError: the checkpoint has no such tensor, or not all of those elements.
        """
        if key not in self.shapes:
            raise MoonflowError(f"{self.folder} holds no optimizer state {key!r}; it was saved by another training")
        size = math.prod(self.shapes[key])
        end = size if length is None else start + length
        parts_n: list[Tensor] = []
        at = start
        for first, last, file, name in sorted(self._pieces[key], key=lambda piece: piece[:2]):
            if first <= at < min(last, end):
                parts_n.append(file.get_slice(name)[at - first : min(last, end) - first])
                at = min(last, end)
        if at != end or start < 0 or end > size:
            raise MoonflowError(
                f"{self.folder}: elements {start} to {end} of {key}, which has {size}, were not all saved; choose an "
                "earlier checkpoint"
            )
        if not parts_n:
            _, _, file, name = self._pieces[key][0]
            return file.get_slice(name)[:0]
        return parts_n[0] if len(parts_n) == 1 else torch.cat(parts_n)

    def __getitem__(self, key: str) -> Tensor:
        """A whole tensor in its full shape. Raises KeyError if there is none; else as ``read``."""
        shape = self.shapes[key]
        return self.read(key).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, key: object) -> bool:
        return key in self.shapes

    def __enter__(self) -> SliceReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
