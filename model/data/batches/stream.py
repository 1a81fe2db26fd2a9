"""Packed batches of a mixture, streamed from shards with an exact, saved position (source: ours)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

from model.data.batches.maker import BatchMaker, Made, MixtureRecipe
from model.data.batches.prefetch import prefetched
from model.data.order.planner import StreamState
from model.network.batch import Batch

__all__ = ["MixtureStream", "StreamState"]

PREFETCH_FROM = 100  # batches; for fewer, a worker process is not worth the seconds that it takes to start


class MixtureStream:
    """Batches of families in the proportions of a schedule, from a saved state or the beginning (None).

    Attributes:
        broken: samples of this process's rows that could not be read, since the stream was opened.

    Raises:
        MoonflowError: no sample fits into a row.
    """

    def __init__(self, recipe: MixtureRecipe, state: StreamState | None = None) -> None:
        self.recipe, self.broken = recipe, 0
        self._maker: BatchMaker | None = BatchMaker(recipe, state)
        self._state = self._maker.state()

    def state(self) -> StreamState:
        """The position to resume from, after the last batch that was given out; the same on every rank."""
        return self._state

    def figures(self) -> dict[str, float]:
        """How full the rows are, the share of vision tokens (``model.data.order.schedule`` says what counts), and how
        many samples were left out and how many could not be read."""
        placed = sum(self._state.tokens.values())
        positions = self._state.batches * self.recipe.rows * self.recipe.tokens_per_row
        return {
            "data/fill": placed / max(1, positions),
            "data/vision_share": self._state.vision / max(1, placed),
            "data/skipped": float(self._state.skipped),
            "data/broken": float(self.broken),
        }

    def next_batch(self, rank: int = 0, ranks: int = 1) -> Batch:
        """This rank's rows of the next global batch: the ``rank``-th of ``ranks`` equal parts.

        Raises:
            MoonflowError: rows that do not divide among the ranks; too many samples that cannot be read.
        """
        if self._maker is None:
            self._maker = BatchMaker(self.recipe, self._state)
        return self._given(self._maker.next(rank, ranks))

    def batches(
        self, count: int, rank: int = 0, ranks: int = 1, *, prefetch: bool | None = None
    ) -> Iterator[tuple[Batch, StreamState]]:
        """``count`` batches, each with the state to resume *after* it. Raises as ``next_batch``.

        Args:
            rank, ranks: make only this rank's rows.
            prefetch: make them in a worker process that is a few batches ahead (``model.data.batches.prefetch``); the
                batches are the same. Default: where there is a core for it and ``count`` is worth it.
        """
        if prefetch is None:
            local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            prefetch = count >= PREFETCH_FROM and len(os.sched_getaffinity(0)) > local_ranks
        if not prefetch:
            for _ in range(count):
                yield self.next_batch(rank, ranks), self._state
            return
        self._maker = None
        with closing(prefetched(self.recipe, self._state, count, rank, ranks)) as made:
            for one in made:
                yield self._given(one), one.state

    def _given(self, made: Made) -> Batch:
        self._state = made.state
        self.broken += made.broken
        return made.batch
