"""Some of a packed batch's rows as a batch of their own, with their targets and media (source: ours).

Shapes: as in ``model.data.batches.packing``.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from model.network.batch import Batch
from model.network.config import ModelConfig
from model.network.vision import media_tokens
from model.parallel.ranks import Ranks


def media_of_rows(batch: Batch, config: ModelConfig) -> list[slice]:
    """Which of ``grid_thws`` each row holds, told by its media pads: a medium lies within one row.

    Raises:
        ValueError: if the pads of a row are not those of whole media, or media are left over.
    """
    merge, media = config.vision_config.merge_kernel_size, len(batch.grid_thws)
    if not media:
        return [slice(0, 0)] * len(batch.input_ids_BT)
    held, end = [], 0
    for row, pads in enumerate((batch.input_ids_BT == config.media_placeholder_token_id).sum(1).tolist()):
        start = end
        while pads > 0 and end < media:
            pads -= media_tokens(batch.grid_thws[end], merge)
            end += 1
        if pads:
            raise ValueError(f"the media pads of row {row} are not those of whole media")
        held.append(slice(start, end))
    if end < media:
        raise ValueError(f"{media - end} media have no pads in any row")
    return held


def micro_batches(batch: Batch, tokens: int, config: ModelConfig) -> list[Batch]:
    """Neighbouring rows in parts of at most ``tokens`` tokens, padding included, but at least one row; 0: all rows.

    Batches of one shape are cut into equally many parts, so ranks with rows alike stay in step.
    """
    rows, width = batch.input_ids_BT.shape
    size = max(1, tokens // width) if tokens else rows
    if size >= rows:
        return [batch]
    return [rows_of(batch, start, min(start + size, rows), config) for start in range(0, rows, size)]


def rows_of_rank(batch: Batch, ranks: Ranks, config: ModelConfig) -> Batch:
    """This rank's rows of a global batch, whose rows the data ranks divide evenly."""
    if ranks.data_ranks == 1:
        return batch
    each = len(batch.input_ids_BT) // ranks.data_ranks
    return rows_of(batch, ranks.data_rank * each, (ranks.data_rank + 1) * each, config)


def rows_of(batch: Batch, start: int, end: int, config: ModelConfig) -> Batch:
    """Rows [start, end), at least one; ``sample_N`` and ``keys`` number the documents of the whole batch."""
    tokens = batch.input_ids_BT.shape[1]
    of_rows = torch.tensor((start * tokens, end * tokens), device=batch.target_positions_N.device)
    mine = slice(*torch.searchsorted(batch.target_positions_N, of_rows).tolist())
    held = media_of_rows(batch, config)[start:end]
    media = slice(held[0].start, held[-1].stop)
    grids, pixels = batch.grid_thws[media], None
    if grids and batch.pixel_values is not None:
        patches = [t * h * w for t, h, w in batch.grid_thws]
        first = sum(patches[: media.start])
        pixels = batch.pixel_values[first : first + sum(patches[media])]
    return replace(
        batch,
        input_ids_BT=batch.input_ids_BT[start:end],
        position_ids_BT=batch.position_ids_BT[start:end],
        document_ids_BT=batch.document_ids_BT[start:end],
        target_positions_N=batch.target_positions_N[mine] - start * tokens,
        targets_N=batch.targets_N[mine],
        vision_N=batch.vision_N[mine],
        sample_N=batch.sample_N[mine],
        pixel_values=pixels,
        grid_thws=grids,
    )
