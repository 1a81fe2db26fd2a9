"""Packed batches of a mixture, streamed from shards with an exact, saved position (source: ours).

Which sample stands where is planned from lengths (``model.data.planner``); here the samples of a plan are read,
tokenised and laid into rows.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.data.packing import Batch, Placed, assemble
from model.data.planner import Place, Planner, StreamState
from model.data.problems import Problem, attempt
from model.data.schedule import Schedule
from model.data.shards import Shard
from model.data.tokenize import TokenizedSample, tokenize
from model.errors import MoonflowError

if TYPE_CHECKING:
    from model.data.folder import DataFolder

__all__ = ["MixtureStream", "StreamRecipe", "StreamState"]

MAX_BROKEN = 0.05  # of a mixture's samples may be unreadable; more is an error
BESIDE_FROM = 100  # batches: for fewer, a process beside this one would not be worth its start of seconds


@dataclass(frozen=True)
class StreamRecipe:
    """All that a stream is made from; called with a saved state, or None for the beginning, it opens the stream."""

    data: DataFolder
    schedule: Schedule
    tokens_per_row: int
    rows: int
    seed: int
    steps: int

    def __call__(self, state: StreamState | None) -> MixtureStream:
        return MixtureStream(self, state)


class MixtureStream:
    """Batches of families in the proportions of a schedule.

    A sample that cannot be read leaves padding in its place, so that nothing else moves; it is counted in ``broken``
    and named on stderr.

    Attributes:
        broken: samples of this process's rows that could not be read, since the stream was opened.
    """

    def __init__(self, recipe: StreamRecipe, state: StreamState | None = None) -> None:
        self.recipe, self.broken = recipe, 0
        data, schedule = recipe.data, recipe.schedule
        self.families = {
            name: data.family(name, recipe.seed * 1000 + number) for number, name in enumerate(schedule.families)
        }
        self.planner = self._planner(state)
        if self.planner.left_out and state is None:
            _log(f"{', '.join(self.planner.left_out)}: no sample fits into a row of {recipe.tokens_per_row} tokens")
        self._unreadable: dict[object, int] = {}  # what could not be read -> samples lost by it
        self._begun = False

    def _planner(self, state: StreamState | None) -> Planner:
        r = self.recipe
        return Planner(
            self.families, r.schedule, tokens_per_row=r.tokens_per_row, rows=r.rows, steps=r.steps, state=state
        )

    def state(self) -> StreamState:
        """The position to resume from, after the last batch that was given out; the same on every rank."""
        return self.planner.state()

    def figures(self) -> dict[str, float]:
        """Fill, share of vision tokens (``model.data.schedule`` says what counts), samples left out and lost."""
        placed = sum(self.planner.tokens.values())
        positions = self.planner.made * self.recipe.rows * self.recipe.tokens_per_row
        return {
            "data/fill": placed / max(1, positions),
            "data/vision_share": self.planner.vision / max(1, placed),
            "data/skipped": float(self.planner.skipped),
            "data/broken": float(self.broken),
        }

    def next_batch(self, rank: int = 0, ranks: int = 1) -> Batch:
        """This rank's rows of the next global batch: the ``rank``-th of ``ranks`` equal parts.

        Raises:
            MoonflowError: rows that do not divide among the ranks; too many samples that cannot be read.
        """
        if self.recipe.rows % ranks:
            raise MoonflowError(
                f"{self.recipe.rows} rows do not divide among {ranks} ranks: choose a number of rows that is a "
                "multiple of the ranks"
            )
        if not self._begun:
            self._begun = True
            for name, queue in self.planner.queues.items():
                self.families[name].expect(queue.taken)
        share = self.recipe.rows // ranks
        plan = self.planner.next()[rank * share : (rank + 1) * share]
        rows: list[list[Placed]] = []
        number = 0
        for places in plan:
            row = []
            for place in places:
                if (sample := self._read(place, ranks)) is not None:
                    row.append(Placed(number, place.start, sample))
                    number += 1
            rows.append(row)
        if not number:
            raise MoonflowError(f"no sample of batch {self.planner.made} can be read: mend the data it names above")
        return assemble(rows, self.recipe.tokens_per_row, self.recipe.data.tokenizer.pad_id)

    def batches(
        self, count: int, rank: int = 0, ranks: int = 1, *, beside: bool | None = None
    ) -> Iterator[tuple[Batch, StreamState]]:
        """``count`` batches, each with the state to resume *after* it.

        Args:
            rank, ranks: make only this rank's rows.
            beside: make them in a process beside this one, which is ahead by a few batches (``model.data.beside``; a
                thread would hold the interpreter between the many small operations of a training step). Default: where
                there is a core for it and ``count`` is worth it. The batches are the same.
        """
        if beside is None:
            local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            beside = count >= BESIDE_FROM and len(os.sched_getaffinity(0)) > local_ranks
        if not beside:
            for _ in range(count):
                yield self.next_batch(rank, ranks), self.state()
            return
        from model.data.beside import batches_beside

        before, start = self.broken, self.state()
        after = start
        try:
            for batch, after, broken in batches_beside(self.recipe, start, count, rank, ranks):
                self.broken = before + broken
                self._stand_at(after)
                yield batch, after
        finally:
            self.planner = self._planner(after)

    def _stand_at(self, state: StreamState) -> None:
        """Figures are those of ``state``; its queues are only built again when batches are made here."""
        self.planner.made, self.planner.vision, self.planner.skipped = state.batches, state.vision, state.skipped
        self.planner.tokens = dict(state.tokens)

    def _read(self, place: Place, ranks: int) -> TokenizedSample | None:
        family = self.families[place.family]
        number, offset = family.place(place.position)
        shard = family.shard(number, place.position // family.total)
        sample = attempt(f"shard {shard.label}, sample {offset}", self._tokenized, shard, offset, place)
        if not isinstance(sample, Problem):
            return sample
        self.broken += 1
        entry = family.entries[number]
        behind = shard.damage is not None and offset >= len(shard)
        key, lost = (entry["shard"], entry["samples"] - len(shard)) if behind else ((entry["shard"], offset), ranks)
        if key not in self._unreadable:
            self._unreadable[key] = lost
            _log(f"{sample.line} ({'its samples are' if behind else 'it is'} left out)")
            self._judge(sample.line)
        return None

    def _tokenized(self, shard: Shard, offset: int, place: Place) -> TokenizedSample:
        sample = tokenize(shard[offset], self.recipe.data.tokenizer, self.recipe.data.image_config)
        if len(sample.input_ids) != place.tokens:
            raise MoonflowError(
                f"sample {sample.key} of {place.family} has {len(sample.input_ids)} tokens, not {place.tokens} as when "
                "it was measured: run prepare_data again"
            )
        return sample

    def _judge(self, last: str) -> None:
        """MoonflowError if too much cannot be read: whole shards, and samples, each for one of every rank."""
        lost, total = sum(self._unreadable.values()), sum(family.total for family in self.families.values())
        if lost > MAX_BROKEN * total:
            raise MoonflowError(
                f"{lost} of the mixture's {total} samples cannot be read, more than {MAX_BROKEN:.0%}: mend the data; "
                f"the last was: {last}"
            )


def _log(message: str) -> None:
    print(f"data: {message}", file=sys.stderr, flush=True)
