"""Batches of a mixture, one after another, as ``model.data.order.planner`` plans them (source: ours).

The plan says which sample goes where. Here the samples are read, tokenised and placed in rows.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Protocol

from model.boundary.errors import MoonflowError
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.batches.packing import PackedDocument, assemble
from model.data.order.family_order import FamilyShards
from model.data.order.planner import PlannedSample, Planner, StreamState
from model.data.order.schedule import Schedule
from model.data.samples.problems import MAX_BROKEN, Problem, attempt
from model.data.samples.shards import Shard
from model.data.samples.tokenize import TokenizedSample, tokenize
from model.network.batch import Batch


class MixtureData(Protocol):
    """Where the samples of a mixture come from; ``model.data.batches.folder.DataFolder`` is one."""

    tokenizer: Tokenizer
    image_config: ImageConfig

    def family(self, name: str, seed: int) -> FamilyShards:
        """A family's train samples in a seeded order, with their lengths."""
        ...


@dataclass(frozen=True)
class MixtureRecipe:
    """What batches are made from.

    Attributes:
        tokens_per_row, rows: shape of a global batch.
        seed: of the order.
        steps: batches of the whole run; 0 for a schedule that does not change.
    """

    data: MixtureData
    schedule: Schedule
    tokens_per_row: int
    rows: int
    seed: int
    steps: int


@dataclass(frozen=True)
class Made:
    """A batch, the state to resume after it, and how many of its samples could not be read."""

    batch: Batch
    state: StreamState
    broken: int


class BatchMaker:
    """Makes one batch after another, from a saved state or the beginning (None).

    A sample that cannot be read leaves padding in its place, so that nothing else moves; it is named on stderr.

    Raises:
        MoonflowError: no sample fits into a row.
    """

    def __init__(self, recipe: MixtureRecipe, state: StreamState | None) -> None:
        self.recipe = recipe
        self.families = {
            name: recipe.data.family(name, recipe.seed * 1000 + number)
            for number, name in enumerate(recipe.schedule.families)
        }
        self._planner = Planner(
            self.families,
            recipe.schedule,
            tokens_per_row=recipe.tokens_per_row,
            rows=recipe.rows,
            steps=recipe.steps,
            state=state,
        )
        if self._planner.left_out and state is None:
            _log(f"{', '.join(self._planner.left_out)}: no sample fits into a row of {recipe.tokens_per_row} tokens")
        self._unreadable: dict[object, int] = {}  # what could not be read -> samples lost by it
        self._begun = False

    def state(self) -> StreamState:
        """The state after the last batch that was made; the same on every rank."""
        return self._planner.state()

    def next(self, rank: int, ranks: int) -> Made:
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
            for name, queue in self._planner.queues.items():
                self.families[name].prefetch(queue.taken)
        rows_per_rank = self.recipe.rows // ranks
        plan = self._planner.next()[rank * rows_per_rank : (rank + 1) * rows_per_rank]
        rows: list[list[PackedDocument]] = []
        number = broken = 0
        for planned_row in plan:
            row = []
            for planned in planned_row:
                sample = self._read(planned, ranks)
                if sample is None:
                    broken += 1
                    continue
                row.append(PackedDocument(number, planned.start, sample))
                number += 1
            rows.append(row)
        if not number:
            raise MoonflowError(
                f"no sample of batch {self._planner.made} can be read: fix the data that is named above"
            )
        batch = assemble(rows, self.recipe.tokens_per_row, self.recipe.data.tokenizer.pad_id)
        return Made(batch, self.state(), broken)

    def _read(self, planned: PlannedSample, ranks: int) -> TokenizedSample | None:
        family = self.families[planned.family]
        number, offset = family.locate(planned.position)
        shard = family.shard(number, planned.position // family.total)
        sample = attempt(f"shard {shard.label}, sample {offset}", self._tokenized, shard, offset, planned)
        if not isinstance(sample, Problem):
            return sample
        entry = family.entries[number]
        after_damage = shard.damage is not None and offset >= len(shard)
        if after_damage:
            key, lost = entry["shard"], entry["samples"] - len(shard)
        else:
            key, lost = (entry["shard"], offset), ranks
        if key not in self._unreadable:
            self._unreadable[key] = lost
            _log(f"{sample.line} ({'its samples are' if after_damage else 'it is'} left out)")
            self._judge(sample.line)
        return None

    def _tokenized(self, shard: Shard, offset: int, planned: PlannedSample) -> TokenizedSample:
        sample = tokenize(shard[offset], self.recipe.data.tokenizer, self.recipe.data.image_config)
        if len(sample.input_ids) != planned.tokens:
            raise MoonflowError(
                f"sample {sample.key} of {planned.family} has {len(sample.input_ids)} tokens, but had {planned.tokens} "
                "when it was measured: run prepare_data again"
            )
        return sample

    def _judge(self, last: str) -> None:
        """Raise MoonflowError if too many samples cannot be read.

        A sample that this rank cannot read counts once per rank: the others are assumed to lose as many.
        """
        lost, total = sum(self._unreadable.values()), sum(family.total for family in self.families.values())
        if lost > MAX_BROKEN * total:
            raise MoonflowError(
                f"{lost} of the mixture's {total} samples cannot be read, more than {MAX_BROKEN:.0%}: fix the data; "
                f"the last was: {last}"
            )


def _log(message: str) -> None:
    print(f"data: {message}", file=sys.stderr, flush=True)
