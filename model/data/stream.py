"""A mixture of families, streamed from shards with an exact, saved position (source: ours).

The order of a stream is a pure function of its seed and the shards, so the state to save is a handful of integers: how
many samples and tokens were drawn of each family, and which drawn samples wait for the next batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from model.data.packing import Batch, RowPacker
from model.data.sample import Sample
from model.data.schedule import Schedule
from model.data.shards import read_shard
from model.data.tokenize import TokenizedSample
from model.errors import MoonflowError

SCALE = 1_000_000  # shares in whole millionths: what a family is due is an exact integer on every machine
MISFITS = 24  # drawn samples that find no room before a batch is closed; they open the next one


class FamilyShards:
    """One family's train shards, sample by sample: position -> sample, in a seeded order that differs by epoch."""

    def __init__(self, folder: Path, entries: list[dict[str, Any]], seed: int) -> None:
        self.folder, self.entries, self.seed = folder, entries, seed
        self.total = sum(entry["samples"] for entry in entries)
        self._shard: tuple[str, list[Sample]] | None = None

    def __getitem__(self, position: int) -> Sample:
        epoch, offset = divmod(position, self.total)
        for number in self._permutation(epoch, len(self.entries)):
            entry = self.entries[number]
            if offset < entry["samples"]:
                return self._load(entry["shard"])[self._permutation(epoch, entry["samples"], number)[offset]]
            offset -= entry["samples"]
        raise AssertionError("offset lies beyond the family's samples")

    @lru_cache(maxsize=4)  # noqa: B019 - a stream lives as long as its process
    def _permutation(self, epoch: int, length: int, shard: int | None = None) -> list[int]:
        key = (self.seed, epoch) if shard is None else (self.seed, epoch, shard)
        return np.random.default_rng(key).permutation(length).tolist()

    def _load(self, shard: str) -> list[Sample]:
        if self._shard is None or self._shard[0] != shard:
            self._shard = (shard, list(read_shard(self.folder / shard)))
        return self._shard[1]


@dataclass(frozen=True)
class StreamState:
    """Where a stream stands; JSON-able through ``vars``.

    Attributes:
        taken: samples drawn of each family.
        tokens: tokens drawn of each family.
        waiting: (family, position) of samples that were drawn and wait for the next batch.
        due: tokens that the schedule has given each family so far, times ``SCALE``.
        batches: made so far.
    """

    taken: dict[str, int]
    tokens: dict[str, int]
    waiting: list[tuple[str, int]]
    due: dict[str, int]
    batches: int


class MixtureStream:
    """Packed batches drawn from families in fixed proportions of *tokens*.

    The next sample always comes from the family that is furthest behind its share, so the ratio holds at every
    moment and not only in expectation.

    Args:
        families: name -> its shards.
        schedule: share of the tokens of each family.
        tokenize: sample -> token ids, loss mask and pixels.
        state: where to go on, as ``state()`` gave it.
    """

    def __init__(
        self,
        families: Mapping[str, FamilyShards],
        schedule: Schedule,
        tokenize: Callable[[Sample], TokenizedSample],
        *,
        tokens_per_row: int,
        rows: int,
        pad_id: int,
        steps: int = 0,
        state: StreamState | None = None,
    ) -> None:
        self.families = families
        self.schedule, self.steps = schedule, steps
        self.tokenize, self.tokens_per_row, self.rows, self.pad_id = tokenize, tokens_per_row, rows, pad_id
        self.skipped = 0
        start = state or StreamState({}, {}, [], {}, 0)
        self.taken = {name: start.taken.get(name, 0) for name in schedule.families}
        self.tokens = {name: start.tokens.get(name, 0) for name in schedule.families}
        self.due = {name: start.due.get(name, 0) for name in schedule.families}
        self.made = start.batches
        self.waiting = [((name, position), self._read(name, position)) for name, position in start.waiting]

    def state(self) -> StreamState:
        waiting = [reference for reference, _ in self.waiting]
        return StreamState(dict(self.taken), dict(self.tokens), waiting, dict(self.due), self.made)

    def _read(self, name: str, position: int) -> TokenizedSample:
        return self.tokenize(self.families[name][position])

    def _draw(self) -> tuple[tuple[str, int], TokenizedSample]:
        shares = self.schedule.shares(self.made / self.steps if self.steps else 0.0)
        name = max(
            (family for family, share in shares.items() if share > 0),
            key=lambda family: (self.due[family] - SCALE * self.tokens[family], shares[family]),
        )
        reference = (name, self.taken[name])
        sample = self._read(*reference)
        self.taken[name] += 1
        self.tokens[name] += len(sample.input_ids)
        for family, share in shares.items():
            self.due[family] += round(SCALE * share) * len(sample.input_ids)
        return reference, sample

    def next_batch(self) -> Batch:
        """Fill every row as far as the next draws allow. Samples longer than a row are counted in ``skipped``."""
        packer = RowPacker(self.tokens_per_row, self.rows)
        self.waiting = [item for item in self.waiting if not packer.add(item[1])]
        smallest = max(8, self.tokens_per_row // 32)
        in_vain, patience = 0, sum(self.families[name].total for name in self.taken)
        while len(self.waiting) < MISFITS and max(packer.free) >= smallest:
            item = self._draw()
            if len(item[1].input_ids) > self.tokens_per_row:
                self.skipped += 1
                in_vain += 1
                if in_vain > patience:
                    raise MoonflowError(
                        f"no sample of {', '.join(self.taken)} fits into a row of {self.tokens_per_row} tokens; "
                        "raise tokens_per_row"
                    )
                continue
            in_vain = 0
            if not packer.add(item[1]):
                self.waiting.append(item)
        self.made += 1
        return packer.batch(self.pad_id)

    def batches(self, count: int) -> Iterator[tuple[Batch, StreamState]]:
        """``count`` batches, each with the state to resume *after* it.

        Made in the caller's thread: a second Python thread would hold the interpreter between the many small
        operations of a training step, and cost twice what it hides (measured on 2 cores).
        """
        for _ in range(count):
            yield self.next_batch(), self.state()
