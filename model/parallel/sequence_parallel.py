"""Sequence parallel training: the ranks of a group share the columns of each row
(source: DeepSpeed-Ulysses, arXiv 2309.14509; the rope key, media and balance loss are ours).

Each of n ranks computes T/n neighbouring columns. Before attention the ranks exchange projections, so that every rank
has the whole rows for H/n of the heads: masks, kernels and packed documents are then those of one process. After it
they exchange outputs, so that every rank has its own columns for all heads. The rope key, which all heads share, goes
to every rank. Everything else in the network works token by token.

A medium may belong to the columns of two ranks: every rank gets the features of the whole rows and uses those of its
columns.

A forward whose context has a ``UlyssesGroup`` takes a batch of this rank's columns (``model.parallel.columns``). Each
rank then has its share of the loss; the gradient of one process is the sum over the ranks.

Shapes: B rows, T tokens in a row, H heads, n ranks, t = T / n tokens and h = H / n heads of a rank, R rope dims, M
vision tokens, D hidden, x heads times their dims, X any.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from model.boundary.errors import MoonflowError
from model.parallel.exchange import exchange


class UlyssesGroup:
    """The ranks that share rows, in order of their columns, as seen from one of them: a ``SequenceGroup`` of
    ``model.network.forward_context``."""

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
        """Largest logits [H], minus infinity for the heads of other ranks; their maximum over the ranks is complete."""
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
        """Exchange projections: give those of this rank's columns, get those of all columns for this rank's heads.

        Returns:
            Queries and keys-values, both [B, T, x / n], and the rope key [B, T, R]; one exchange for the three.
        """
        parts = [part.unflatten(-1, (self.size, -1)) for part in (q_Btx, kv_Btx)]
        parts.append(rope_BtR.unsqueeze(2).expand(-1, -1, self.size, -1))
        sent_nBtX = torch.cat(parts, dim=-1).movedim(2, 0)
        whole_BTX = self._all_to_all(sent_nBtX).movedim(0, 1).flatten(1, 2)
        q, kv, rope = whole_BTX.split([part.shape[-1] for part in parts], dim=-1)
        return q, kv, rope

    def to_columns(self, out_BTx: Tensor) -> Tensor:
        """Exchange outputs: give those of this rank's heads, get those of all heads for its columns, [B, t, n * x]."""
        sent_nBtx = out_BTx.unflatten(1, (self.size, -1)).movedim(1, 0)
        return self._all_to_all(sent_nBtx).movedim(0, 2).flatten(2)

    def _all_to_all(self, sent_nX: Tensor) -> Tensor:
        """Send part r to rank r; returns what each rank sent here."""
        ones = [1] * self.size
        return exchange(sent_nX, ones, ones, self.group)

    def of_columns(self, features_MD: Tensor, pads_BT: Tensor) -> Tensor:
        """The features of this rank's media pads, from those of the whole rows in reading order.

        Args:
            pads_BT: bool; which tokens of the whole rows are media pads.

        Raises:
            ValueError: the number of media pads is not the number of vision features.
        """
        column_M = pads_BT.nonzero()[:, 1]
        if len(column_M) != len(features_MD):
            raise ValueError(f"{len(column_M)} media pads for {len(features_MD)} vision features")
        return features_MD[column_M // (pads_BT.shape[1] // self.size) == self.rank]

    def sum_(self, x: Tensor) -> Tensor:
        """``x`` becomes its sum over the group, without gradient."""
        dist.all_reduce(x, group=self.group)
        return x
