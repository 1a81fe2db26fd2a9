"""The order of one family's samples: a pure function of (shards, seed, position) (source: ours)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np

from model.boundary.errors import MoonflowError
from model.data.order.lengths import Lengths
from model.data.samples.sample import Sample
from model.data.samples.shard_source import BrokenShard, ShardSource
from model.data.samples.shards import Shard

OPEN_SHARDS = 2  # of a family: samples that wait for room in a row may be in the previous shard


class FamilyShards:
    """One family's shards, sample by sample: position -> sample, in a seeded order that differs by epoch.

    Shards come in a seeded order, and each shard's samples in another, so that a shard is needed for a while and then
    not again until the next epoch.

    Args:
        source: where the shards are read from.
        entries: of index.json: ``{"shard": name, "samples": count}``.
        seed: of the order.
        lengths: of each entry's samples, int32 [samples, 2]; only planning needs them.

    Raises:
        MoonflowError: a shard has another number of lengths than of samples.
    """

    def __init__(
        self, source: ShardSource, entries: Sequence[dict[str, Any]], seed: int, lengths: Sequence[Lengths] = ()
    ) -> None:
        self.source, self.entries, self.seed, self.lengths = source, entries, seed, lengths
        self.total = sum(entry["samples"] for entry in entries)
        for entry, values in zip(entries, lengths, strict=False):
            if len(values) != entry["samples"]:
                raise MoonflowError(
                    f"shard {entry['shard']} has {entry['samples']} samples in index.json and {len(values)} lengths: "
                    "run prepare_data again"
                )
        self._open: dict[int, Shard] = {}
        self._order, self._permutation = lru_cache(2)(self._ordered), lru_cache(2 * OPEN_SHARDS)(self._permuted)

    def __getitem__(self, position: int) -> Sample:
        number, offset = self.locate(position)
        return self.shard(number, position // self.total)[offset]

    def locate(self, position: int) -> tuple[int, int]:
        """(number of the entry, number of the sample in it)."""
        epoch, offset = divmod(position, self.total)
        order, ends = self._order(epoch)
        at = bisect_right(ends, offset)
        number = order[at]
        start = ends[at - 1] if at else 0
        return number, self._permutation(epoch, number)[offset - start]

    def tokens(self, position: int) -> tuple[int, bool]:
        """Tokens of the sample, 0 if it cannot be read; and whether it holds an image or a video."""
        number, offset = self.locate(position)
        tokens, media = self.lengths[number][offset].tolist()
        return tokens, media > 0

    def shard(self, number: int, epoch: int) -> Shard:
        """The entry's shard, opened. A broken one has no samples, and its ``damage`` says why.

        The next shard of the epoch is fetched in the background.

        Raises:
            MoonflowError: it cannot be reached now.
        """
        if number in self._open:
            return self._open[number]
        name = self.entries[number]["shard"]
        try:
            shard = Shard(self.source.open(name), name)
        except BrokenShard as error:
            shard = Shard.lost(error, name)
        while len(self._open) >= OPEN_SHARDS:
            self._open.pop(next(iter(self._open))).close()
        self._open[number] = shard
        order, _ = self._order(epoch)
        after = order.index(number) + 1
        following = order[after] if after < len(order) else self._order(epoch + 1)[0][0]
        if following != number:
            self.source.prefetch(self.entries[following]["shard"])
        return shard

    def prefetch(self, position: int) -> None:
        """Have the shard of ``position`` fetched in the background."""
        self.source.prefetch(self.entries[self.locate(position)[0]]["shard"])

    def _ordered(self, epoch: int) -> tuple[list[int], list[int]]:
        """The entries' numbers in this epoch's order, and how many samples there are up to the end of each."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.entries)).tolist()
        return order, list(accumulate(self.entries[number]["samples"] for number in order))

    def _permuted(self, epoch: int, number: int) -> list[int]:
        samples = self.entries[number]["samples"]
        return np.random.default_rng((self.seed, epoch, number)).permutation(samples).tolist()
