"""The tensors in a checkpoint's files, read one at a time (source: the released checkpoint)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.boundary.errors import MoonflowError
from model.boundary.untrusted_text import read_json
from model.checkpoint.file_names import INDEX, WEIGHTS
from model.checkpoint.tensor_names import released_name
from model.network.quantization import PACKED, SCALE, SHAPE, unpacked_experts, unpacked_shapes


class StoredTensors:
    """A checkpoint folder's tensors under their released names, from one file or, by its index, from several.

    Only the files' headers are read until a tensor is asked for.

    Attributes:
        path: the file that says which tensors there are: the weights, or their index.
        shapes: released name -> shape; for INT4 weights the shape after they are unpacked.

    Raises:
        MoonflowError: naming the missing or damaged file, or a tensor that is not where the index says.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / (WEIGHTS if (folder / WEIGHTS).is_file() else INDEX)
        self._source: dict[str, tuple[Path, str]] = {}  # released name -> its file and the name that it has there
        files, indexed = _files(folder)
        shapes: dict[str, tuple[int, ...]] = {}
        for path in files:
            with opened(path) as file:
                for stored in file.keys():  # noqa: SIM118 (it is not a dict)
                    name = released_name(stored)
                    shapes[name], self._source[name] = tuple(file.get_slice(stored).get_shape()), (path, stored)
                    indexed.pop(stored, None)
        for stored in sorted(indexed):
            raise MoonflowError(f"{indexed[stored]}: tensor {stored} is missing; fetch the checkpoint again")
        self.shapes = unpacked_shapes(shapes)

    def read(self, name: str) -> Tensor:
        """The tensor of a released name, in the dtype of its file. INT4 weights are unpacked.

        Raises:
            MoonflowError: the file is damaged, or INT4 weights do not fit their scales.
        """
        prefix = name.removesuffix("weight")
        parts = (name,) if name in self._source else tuple(prefix + part for part in (PACKED, SCALE, SHAPE))
        stored = {part: self._stored(*self._source[part]) for part in parts if part in self._source}
        return unpacked_experts(stored, str(self.path.parent))[name]

    def _stored(self, path: Path, stored: str) -> Tensor:
        # The file is mapped: every page of it that was read counts as this process's memory until the map is gone.
        # So each tensor has a map of its own, which goes with the tensor.
        with opened(path) as file:
            tensor: Tensor = file.get_tensor(stored)
            return tensor


@contextmanager
def opened(path: Path, where: str | None = None) -> Iterator[Any]:
    """A safetensors file; MoonflowError if it is missing or damaged, also inside. It names ``where`` if that is given,
    the path otherwise."""
    where = where or str(path)
    if not path.is_file():
        raise MoonflowError(f"no weights at {where}; the folder is not a checkpoint, or its download was cut short")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise MoonflowError(f"{where} is damaged ({error}); fetch the checkpoint again") from error


def _files(folder: Path) -> tuple[list[Path], dict[str, Path]]:
    """The files with a checkpoint's weights; and each tensor's file by its name, if there is an index.

    Raises:
        MoonflowError: the index is damaged or names something that is not a file of its folder.
    """
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return [folder / WEIGHTS], {}
    try:
        file_of = {str(name): str(file) for name, file in read_json(index.read_text())["weight_map"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise MoonflowError(f"{index} is damaged ({error}); fetch the checkpoint again") from error
    for shard in file_of.values():
        if Path(shard).name != shard:
            raise MoonflowError(f"{index} names {shard!r}, which is not a file of its folder")
    indexed = {name: folder / shard for name, shard in file_of.items()}
    return sorted(set(indexed.values())), indexed
