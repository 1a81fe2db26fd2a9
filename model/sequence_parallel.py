"""Sequence parallel training: the ranks of a group share the columns of each row
(source: DeepSpeed-Ulysses, arXiv 2309.14509; the rope key, media and balance loss are ours).

Each of n ranks computes T/n neighbouring columns. Around attention the ranks trade: before it every rank gets the whole
row for H/n of the heads, so that masks, kernels and the packed documents are those of one process; after it every rank
gets its columns back for all heads. The rope key, which all heads share, goes to every rank. Everything else in the
network works token by token.

A medium may lie across a cut: every rank is given the features of the whole rows and uses those of its columns.

``with sequence_shared_by(group):`` around a forward says that its batch holds columns. Each rank then has its share of
the loss; the gradient of one process is the sum over the ranks.

Shapes: B rows, T tokens in a row, t = T / n of this rank, n ranks, H heads, R rope dims, M vision
tokens, D hidden, x what lies head by head, X any.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from model.errors import MoonflowError
from model.exchange import exchange


class SequenceGroup:
    """The ranks that share rows, in order of their columns, as seen from one of them."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group, self.rank, self.size = group, dist.get_rank(group), dist.get_world_size(group)

    def heads_of(self, heads: int) -> int:
        """How many of ``heads`` attend here; MoonflowError where they do not divide evenly."""
        if heads % self.size:
            raise MoonflowError(
                f"{heads} attention heads do not divide among {self.size} ranks: choose a sequence_parallel that "
                "divides num_attention_heads"
            )
        return heads // self.size

    def of_all_heads(self, own_h: Tensor) -> Tensor:
        """Largest logits [H] with minus infinity for the heads that attend elsewhere: a maximum over ranks is whole."""
        return (
            torch.full_like(own_h, -torch.inf)
            .repeat(self.size)
            .index_copy_(0, torch.arange(len(own_h), device=own_h.device) + self.rank * len(own_h), own_h)
        )

    def whole_rows(self, own_XBt: Tensor) -> Tensor:
        """[X, B, T] of every rank's [X, B, t], without gradient."""
        parts = [torch.empty_like(own_XBt) for _ in range(self.size)]
        dist.all_gather(parts, own_XBt.contiguous(), group=self.group)
        return torch.cat(parts, dim=-1)

    def to_heads(self, q_Btx: Tensor, kv_Btx: Tensor, rope_BtR: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Projections of this rank's columns, by head along x, to those of all columns for its heads; rope key whole.

        One exchange for the three, [B, T, x / n] twice and [B, T, R].
        """
        parts = [part.unflatten(-1, (self.size, -1)) for part in (q_Btx, kv_Btx)]
        parts.append(rope_BtR.unsqueeze(2).expand(-1, -1, self.size, -1))
        sent_nBtX = torch.cat(parts, dim=-1).movedim(2, 0)
        whole_BTX = self._trade(sent_nBtX).movedim(0, 1).flatten(1, 2)
        q, kv, rope = whole_BTX.split([part.shape[-1] for part in parts], dim=-1)
        return q, kv, rope

    def to_columns(self, out_BTx: Tensor) -> Tensor:
        """Outputs of this rank's heads for all columns to those of all heads for its columns, [B, t, n * x]."""
        sent_nBtx = out_BTx.unflatten(1, (self.size, -1)).movedim(1, 0)
        return self._trade(sent_nBtx).movedim(0, 2).flatten(2)

    def _trade(self, sent_nX: Tensor) -> Tensor:
        """Part r of every rank goes to rank r."""
        ones = [1] * self.size
        return exchange(sent_nX, ones, ones, self.group)

    def of_columns(self, features_MD: Tensor, pads_BT: Tensor) -> Tensor:
        """The features of this rank's media pads, from those of the whole rows in reading order.

        Args:
            pads_BT: bool; which tokens of the whole rows are media pads.

        Raises:
            ValueError: if the number of media pads is not the number of vision features.
        """
        column_M = pads_BT.nonzero()[:, 1]
        if len(column_M) != len(features_MD):
            raise ValueError(f"{len(column_M)} media pads for {len(features_MD)} vision features")
        return features_MD[column_M // (pads_BT.shape[1] // self.size) == self.rank]

    def sum_(self, x: Tensor) -> Tensor:
        """``x`` becomes its sum over the group, without gradient."""
        dist.all_reduce(x, group=self.group)
        return x


_group: SequenceGroup | None = None


@contextmanager
def sequence_shared_by(group: dist.ProcessGroup | None) -> Iterator[None]:
    """Batches of the forwards inside hold this rank's columns (``model.data.columns``); None: whole rows.

    Every rank of the group runs the same forwards and backwards.
    """
    global _group
    before, _group = _group, None if group is None else SequenceGroup(group)
    try:
        yield
    finally:
        _group = before


def sequence_group() -> SequenceGroup | None:
    """What ``sequence_shared_by`` said, or None."""
    return _group
