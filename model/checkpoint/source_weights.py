"""The weights of somebody else's checkpoint, checked by name, shape and type and read a tensor at a time (source: the
released checkpoint)."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from model.boundary.errors import MoonflowError
from model.boundary.untrusted_text import read_json, shown
from model.checkpoint.file_names import CONFIG, INDEX, WEIGHTS
from model.checkpoint.source_files import HashedFiles
from model.checkpoint.stored_tensors import opened
from model.checkpoint.tensor_names import CORRECTION_BIAS, released_name, released_views
from model.network.config import ModelConfig
from model.network.construction import build_on_meta
from model.network.quantization import GROUP, PACKED, SCALE, SHAPE, is_expert_weight, unpack, unpacked_experts

log = logging.getLogger(__name__)

# Tables that programs store although they compute them from the config.
_COMPUTED = re.compile(r".*\.rotary_emb\.inv_freq|vision_tower\.patch_embed\.pos_emb\.time_weight")

# What safetensors calls the types that each kind of tensor may have.
_WEIGHT_TYPES = ("F32", "BF16")
_PARTS: dict[str, tuple[str, ...]] = {PACKED: ("I32",), SCALE: _WEIGHT_TYPES, SHAPE: ("I32", "I64")}

_INDEX_BYTES = 256 << 20  # of an index; that of K2.5, with 208,550 tensors, has about 30 million (ours)
WAITING_BYTES = 1 << 30  # of INT4 parts in memory, of which the others have not been read yet (ours)
# Read through one mapping of a file, whose pages count as this process's memory: at least so much, and so large a share
# of the file, since each mapping reads the file's header again (ours).
_MAPPED_BYTES, _MAPPED_SHARE = 4 << 20, 1 / 16


class SourceWeights:
    """A checkpoint's tensors under our released names.

    Constructed, it has compared the names with what ``config`` asks for, as far as they are known before any weight is
    fetched: all of them if there is an index.

    Attributes:
        int4: whether the routed experts are stored as INT4; known from the start with an index, else once ``tensors``
            has begun.
        largest_file: bytes of the largest file of weights that ``tensors`` has opened so far.
        other_groups: INT4 groups that ``tensors`` has unpacked so far and that quantising again gives other levels:
            their largest level is not 7 or -7, and not all are zero.

    Raises:
        MoonflowError: naming the file and the first tensor that is missing or unknown, or quantised in another way.
    """

    def __init__(self, files: HashedFiles, config: ModelConfig) -> None:
        self.int4 = False
        self.largest_file = self.other_groups = 0
        self._files, self._config = files, config
        self._shapes: dict[str, tuple[int, ...]] = {}  # of the weights, unpacked
        self._file_of: dict[str, str] | None = None
        if WEIGHTS in files.names:
            self._shards = [WEIGHTS]
            return
        if INDEX not in files.names:
            raise MoonflowError(f"{files.where} has neither {WEIGHTS} nor {INDEX}; give a checkpoint in safetensors")
        self._file_of = self._index()
        self._shards = sorted(set(self._file_of.values()))
        self._check_names(self._file_of, files.place(INDEX))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor once, with its released name. INT4 is unpacked to the type of its scales, as compressed-tensors
        does it; the routers' correction biases are float32. A tensor may be mapped from a file that is gone once the
        next one is asked for: whoever keeps it copies it.

        Raises:
            MoonflowError: as the constructor; a wrong shape or type; values that are not finite; a damaged file; parts
                of INT4 that lie so far apart that more than ``WAITING_BYTES`` wait for the others.
        """
        packed: dict[str, dict[str, Tensor]] = {}  # parts that wait for the others, which may be in the next file
        waiting = 0  # their bytes
        for number, shard in enumerate(self._shards, 1):
            where = self._files.place(shard)
            log.info("weights: file %d of %d, %s", number, len(self._shards), where)
            with self._files.open(shard) as path:
                self.largest_file = max(self.largest_file, path.stat().st_size)
                for stored, tensor in _each(path, self._checked_header(path, shard), where):
                    weight, part = _parted(released_name(stored))
                    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                        raise MoonflowError(
                            f"{where}: tensor {shown(stored)} holds values that are not finite; fetch the file again"
                        )
                    if not part:
                        yield weight, tensor.float() if weight.endswith(CORRECTION_BIAS) else tensor
                        continue
                    parts = packed.setdefault(weight, {})
                    parts[_named(weight, part)] = tensor.clone()
                    waiting += tensor.nbytes
                    if len(parts) == len(_PARTS):
                        waiting -= sum(value.nbytes for value in parts.values())
                        self.other_groups += _other_groups(parts[_named(weight, PACKED)])
                        yield weight, unpacked_experts(packed.pop(weight), where)[weight]
                    if waiting > WAITING_BYTES:
                        raise MoonflowError(
                            f"{where}: tensor {next(iter(packed[next(iter(packed))]))} waits for its other parts, and "
                            f"with it more than {WAITING_BYTES:,} bytes: store {PACKED}, {SCALE} and {SHAPE} of an "
                            "expert next to each other"
                        )

    def _index(self) -> dict[str, str]:
        """Stored name -> file."""
        where = self._files.place(INDEX)
        try:
            raw = read_json(self._files.text(INDEX, _INDEX_BYTES))["weight_map"]
            file_of = {str(name): str(file) for name, file in raw.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise MoonflowError(f"{where} is damaged ({error}); fetch the checkpoint again") from error
        for shard in sorted(set(file_of.values()) - self._files.names):
            raise MoonflowError(f"{where} names {shown(shard)!r}, which is not there; fetch the whole checkpoint")
        return file_of

    def _check_names(self, stored_names: Iterable[str], where: str) -> None:
        """Compare all stored names with the config's, and set ``int4`` and ``_shapes``."""
        found: dict[str, set[str]] = {}  # weight -> in which parts it is stored
        for stored in sorted(stored_names):
            name = released_name(stored)
            if _COMPUTED.fullmatch(name):
                continue
            weight, part = _parted(name)
            if part and not is_expert_weight(weight):
                raise MoonflowError(
                    f"{where}: tensor {shown(stored)} is of a quantised layer; only routed experts can be quantised"
                )
            parts = found.setdefault(weight, set())
            if part in parts:
                raise MoonflowError(f"{where}: tensor {shown(name)} is there twice, the second time as {shown(stored)}")
            parts.add(part)
        self.int4 = any(PACKED in parts for parts in found.values())
        # One by one: a config that asks for millions of experts must not fill the memory with their names.
        for weight, view in released_views(build_on_meta(self._config).state_dict()):
            self._check_parts(weight, found.pop(weight, set()), where)
            self._shapes[weight] = tuple(view.shape)
        for weight, parts in sorted(found.items()):
            raise MoonflowError(
                f"{where}: tensor {shown(_named(weight, min(parts)))} is unknown; {CONFIG} asks for no such tensor"
            )
        if self.int4 != (self._config.quantization_config is not None):
            stated, stored = ("nothing of INT4", "as INT4") if self.int4 else ("INT4", "as weight")
            raise MoonflowError(
                f"{where}: routed experts are stored {stored}, but quantization_config in {CONFIG} says {stated}"
            )

    def _check_parts(self, weight: str, parts: set[str], where: str) -> None:
        """MoonflowError unless a weight is stored in the parts that it has to have."""
        wanted = set(_PARTS) if self.int4 and is_expert_weight(weight) else {""}
        for part in sorted(parts - wanted):
            raise MoonflowError(
                f"{where}: tensor {shown(_named(weight, part))} is unknown; routed experts are stored either all as "
                f"weight, or all as INT4 in {PACKED}, {SCALE} and {SHAPE}"
            )
        for part in sorted(wanted - parts):
            raise MoonflowError(
                f"{where}: tensor {shown(_named(weight, part))} is missing; {CONFIG} and weights disagree"
            )

    def _checked_header(self, path: Path, shard: str) -> list[str]:
        """Names of a file's tensors that are to be read, once its header agrees with the config and the index."""
        where = self._files.place(shard)
        header: dict[str, tuple[str, tuple[int, ...]]] = {}
        with opened(path, where) as file:
            for stored in file.keys():  # noqa: SIM118 (it is not a dict)
                tensor = file.get_slice(stored)
                header[stored] = (str(tensor.get_dtype()), tuple(tensor.get_shape()))
        if self._file_of is None:
            self._check_names(header, where)
        else:
            indexed = {stored for stored, file_name in self._file_of.items() if file_name == shard}
            for stored in sorted(indexed - header.keys()):
                raise MoonflowError(f"{where}: tensor {shown(stored)} is missing; fetch the file again")
            for stored in sorted(header.keys() - indexed):
                raise MoonflowError(f"{where}: tensor {shown(stored)} is not in {INDEX}; fetch the checkpoint again")
        names = [stored for stored in header if not _COMPUTED.fullmatch(released_name(stored))]
        for stored in names:
            self._check_tensor(stored, *header[stored], where)
        return names

    def _check_tensor(self, stored: str, dtype: str, shape: tuple[int, ...], where: str) -> None:
        weight, part = _parted(released_name(stored))
        types, wanted = _PARTS.get(part, _WEIGHT_TYPES), self._shapes[weight]
        if part:
            rows, columns = wanted
            wanted = {PACKED: (rows, columns // 8), SCALE: (rows, columns // GROUP), SHAPE: (2,)}[part]
        if dtype not in types:
            raise MoonflowError(
                f"{where}: tensor {shown(stored)} is of type {dtype}; only {' and '.join(types)} can be read"
            )
        if shape != wanted:
            raise MoonflowError(f"{where}: tensor {shown(stored)} is {list(shape)}, {CONFIG} asks for {list(wanted)}")


def _parted(name: str) -> tuple[str, str]:
    """The weight that a tensor belongs to, and which part of it the tensor is: "" if it is the weight itself."""
    prefix, _, kind = name.rpartition(".")
    return (f"{prefix}.weight", kind) if kind in _PARTS else (name, "")


def _named(weight: str, part: str) -> str:
    """The released name of a part, the inverse of ``_parted``."""
    return weight.removesuffix("weight") + part if part else weight


def _other_groups(packed: Tensor) -> int:
    """How many groups have another largest level than 7 or -7; those of zeros are not counted."""
    largest = unpack(packed).unflatten(-1, (-1, GROUP)).abs().amax(-1)
    return int(((largest != 7) & (largest != 0)).sum())


def _each(path: Path, names: Iterable[str], where: str) -> Iterator[tuple[str, Tensor]]:
    waiting = deque(names)
    most = max(_MAPPED_BYTES, int(_MAPPED_SHARE * path.stat().st_size))
    while waiting:
        with opened(path, where) as file:
            mapped = 0
            while waiting and mapped < most:
                stored = waiting.popleft()
                tensor: Tensor = file.get_tensor(stored)
                mapped += tensor.nbytes
                yield stored, tensor
