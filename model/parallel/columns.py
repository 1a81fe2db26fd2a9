"""One rank's columns of packed rows, for sequence parallel training (source: ours).

Shapes: B rows, T tokens in a row, N positions with a target; n ranks, t = T / n columns of each.
"""

from __future__ import annotations

from dataclasses import replace

from model.boundary.errors import MoonflowError
from model.network.batch import Batch


def columns(batch: Batch, rank: int, size: int) -> Batch:
    """Columns [rank * t, (rank + 1) * t) of every row; the media stay those of the whole rows.

    A target stays with the column that predicts it, also where the target's own column belongs to the next rank.

    Raises:
        MoonflowError: the rows do not divide evenly.
    """
    if size == 1:
        return batch
    rows, tokens = batch.input_ids_BT.shape
    if tokens % size:
        raise MoonflowError(
            f"rows of {tokens} tokens do not divide among {size} ranks: choose a tokens_per_row that is a multiple of "
            "sequence_parallel"
        )
    width = tokens // size
    cut = slice(rank * width, (rank + 1) * width)
    row_N, column_N = batch.target_positions_N // tokens, batch.target_positions_N % tokens
    mine_N = column_N // width == rank
    return replace(
        batch,
        input_ids_BT=batch.input_ids_BT[:, cut],
        position_ids_BT=batch.position_ids_BT[:, cut],
        document_ids_BT=batch.document_ids_BT[:, cut],
        target_positions_N=row_N[mine_N] * width + column_N[mine_N] - cut.start,
        targets_N=batch.targets_N[mine_N],
        vision_N=batch.vision_N[mine_N],
        sample_N=batch.sample_N[mine_N],
    )
