"""Several documents in a row, without padding between them; attention keeps them apart (source: ours).

Shapes: B rows, T tokens in a row, N positions with a target, P patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from model.data.samples.tokenize import TokenizedSample
from model.network.batch import Batch, GridTHW


class RowPacker:
    """First-fit packing of documents into ``rows`` rows of ``tokens_per_row``."""

    def __init__(self, tokens_per_row: int, rows: int) -> None:
        self.tokens_per_row = tokens_per_row
        self.free = [tokens_per_row] * rows
        self.rows: list[list[PackedDocument]] = [[] for _ in range(rows)]
        self.count = 0

    def add(self, sample: TokenizedSample) -> bool:
        """Put the sample into the first row with room; False when no row has any."""
        length = len(sample.input_ids)
        for row, free in enumerate(self.free):
            if length <= free:
                self.rows[row].append(PackedDocument(self.count, self.tokens_per_row - free, sample))
                self.free[row] -= length
                self.count += 1
                return True
        return False

    def batch(self, pad_id: int) -> Batch:
        return assemble(self.rows, self.tokens_per_row, pad_id)


@dataclass(frozen=True)
class PackedDocument:
    """A document in its row: its number in ``sample_N``, the column of its first token, and its content."""

    number: int
    start: int
    sample: TokenizedSample


def assemble(rows: Sequence[Sequence[PackedDocument]], tokens_per_row: int, pad_id: int) -> Batch:
    """The batch of documents whose rows and columns are decided; columns without a document are padding."""
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


def pack(
    samples: Sequence[TokenizedSample],
    pad_id: int,
    tokens_per_row: int = 0,
    *,
    rows_multiple_of: int = 1,
    tokens_multiple_of: int = 1,
) -> Batch:
    """All samples, first-fit by decreasing length; ``sample_N`` counts them in the order given.

    Args:
        tokens_per_row: if it is less than the longest sample, rows are as long as that.
        rows_multiple_of: divides the number of rows; rows without a sample are padding.
        tokens_multiple_of: divides the length of a row.
    """
    tokens_per_row = max(tokens_per_row, *(len(sample.input_ids) for sample in samples))
    tokens_per_row += -tokens_per_row % tokens_multiple_of
    order = sorted(range(len(samples)), key=lambda i: -len(samples[i].input_ids))
    packer = RowPacker(tokens_per_row, len(samples))
    for i in order:
        packer.add(samples[i])
    rows = [[replace(one, number=order[one.number]) for one in row] for row in packer.rows if row]
    rows += [[] for _ in range(-len(rows) % rows_multiple_of)]
    return assemble(rows, tokens_per_row, pad_id)
