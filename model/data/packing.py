"""Several documents to a row, without padding between them and without sight of each other (source: ours).

Shapes: B rows, T tokens in a row, N positions with a target, P patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.data.tokenize import TokenizedSample
from model.vision import GridTHW


@dataclass(frozen=True)
class Batch:
    """What the network reads.

    Attributes:
        input_ids_BT: int64; the tail of a row is padding.
        position_ids_BT: int64; counted from 0 in each document.
        document_ids_BT: int64; the document's number within its row, -1 in padding.
        target_positions_N: int64; flat positions (row * T + column) whose next token is trained on, ascending.
        targets_N: int64; those next tokens.
        vision_N: bool; whether the target's document holds an image or a video.
        sample_N: int64; the number of the target's document in the list that was packed.
        pixel_values: float32 [P, 3, 14, 14] of all media in reading order of the rows, or None.
        grid_thws: (t, h, w) of each medium, in the same order.
        keys: key of each packed document, by its number in ``sample_N``.
    """

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    document_ids_BT: Tensor
    target_positions_N: Tensor
    targets_N: Tensor
    vision_N: Tensor
    sample_N: Tensor
    pixel_values: Tensor | None
    grid_thws: list[GridTHW]
    keys: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.document_ids_BT >= 0).sum())

    def to(self, device: torch.device) -> Batch:
        """The same batch there."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


class RowPacker:
    """First-fit packing of documents into ``rows`` rows of ``tokens_per_row``."""

    def __init__(self, tokens_per_row: int, rows: int) -> None:
        self.tokens_per_row = tokens_per_row
        self.free = [tokens_per_row] * rows
        self.rows: list[list[Placed]] = [[] for _ in range(rows)]
        self.count = 0

    def add(self, sample: TokenizedSample) -> bool:
        """Place the sample in the first row with room; False when no row has any."""
        length = len(sample.input_ids)
        for row, free in enumerate(self.free):
            if length <= free:
                self.rows[row].append(Placed(self.count, self.tokens_per_row - free, sample))
                self.free[row] -= length
                self.count += 1
                return True
        return False

    def batch(self, pad_id: int) -> Batch:
        return assemble(self.rows, self.tokens_per_row, pad_id)


@dataclass(frozen=True)
class Placed:
    """A document's number in ``sample_N``, the column of its first token, and the document."""

    number: int
    start: int
    sample: TokenizedSample


def assemble(rows: Sequence[Sequence[Placed]], tokens_per_row: int, pad_id: int) -> Batch:
    """The batch of documents whose places are decided; columns that no document covers are padding."""
    shape = (len(rows), tokens_per_row)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    positions, documents = np.zeros(shape, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
    nothing = np.zeros(0, dtype=np.int64)
    where, targets, samples, vision = [nothing], [nothing], [nothing], [nothing]
    pixels: list[Tensor] = []
    grids: list[GridTHW] = []
    keys: dict[int, str] = {}
    for row, members in enumerate(rows):
        for document, (number, start, sample) in enumerate((one.number, one.start, one.sample) for one in members):
            ids, length = sample.input_ids.numpy(), len(sample.input_ids)
            keys[number] = sample.key
            input_ids[row, start : start + length] = ids
            positions[row, start : start + length] = np.arange(length)
            documents[row, start : start + length] = document
            trained = np.flatnonzero(sample.loss_mask.numpy()[1:])
            where.append(row * tokens_per_row + start + trained)
            targets.append(ids[1:][trained])
            samples.append(np.full(len(trained), number))
            vision.append(np.full(len(trained), sample.pixel_values is not None))
            if sample.pixel_values is not None:
                pixels.append(sample.pixel_values)
                grids.extend(sample.grid_thws)
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(positions),
        torch.from_numpy(documents),
        torch.from_numpy(np.concatenate(where)).long(),
        torch.from_numpy(np.concatenate(targets)).long(),
        torch.from_numpy(np.concatenate(vision)).bool(),
        torch.from_numpy(np.concatenate(samples)).long(),
        torch.cat(pixels) if pixels else None,
        grids,
        tuple(keys[number] for number in sorted(keys)),
    )


def pack(samples: Sequence[TokenizedSample], pad_id: int, tokens_per_row: int | None = None) -> Batch:
    """All samples in as few rows as first-fit by falling length gives; ``sample_N`` counts in the order given.

    Rows are as long as the longest sample unless ``tokens_per_row`` says otherwise.
    """
    longest = max(len(sample.input_ids) for sample in samples)
    tokens_per_row = max(tokens_per_row or 0, longest)
    order = sorted(range(len(samples)), key=lambda i: -len(samples[i].input_ids))
    packer = RowPacker(tokens_per_row, len(samples))
    for i in order:
        packer.add(samples[i])
    rows = [[replace(one, number=order[one.number]) for one in row] for row in packer.rows if row]
    return assemble(rows, tokens_per_row, pad_id)


def fill_fraction(batches: Iterable[Batch]) -> float:
    """Share of positions that are not padding."""
    used = total = 0
    for batch in batches:
        used += batch.tokens
        total += batch.input_ids_BT.numel()
    return used / total
