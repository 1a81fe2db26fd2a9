"""A data folder, the output of ``prepare_data``: tokenizer, index.json, lengths and shards (source: ours)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from model.boundary.errors import MoonflowError
from model.codec.image import as_image_config
from model.codec.tokenizer import Tokenizer
from model.data.batches.maker import MixtureRecipe
from model.data.batches.stream import MixtureStream, StreamState
from model.data.order.family_order import FamilyShards
from model.data.order.lengths import Lengths, measure, read_lengths
from model.data.order.schedule import Schedule
from model.data.order.shares import Mixture
from model.data.samples.problems import MAX_BROKEN, Problem, attempt, one_line
from model.data.samples.sample import Sample, Split
from model.data.samples.shard_source import JoinedShards, LocalShards, ShardSource
from model.data.samples.shards import Shard
from model.data.user.user_data import line_of

NAMED = 20  # samples that are longer than a row (ours: to name one, its shard has to be fetched)


class DataFolder:
    """Opens a data folder.

    Args:
        path: the folder with tokenizer, index.json and lengths.
        source: where the shards are read from; the same folder unless given.

    Raises:
        MoonflowError: index.json is missing or damaged.
    """

    def __init__(self, path: Path, source: ShardSource | None = None) -> None:
        self.path = path
        self.source: ShardSource = source or LocalShards(path)
        try:
            self.index = json.loads((path / "index.json").read_text())
            if not isinstance(self.index, dict) or not isinstance(self.index.get("families"), dict):
                raise ValueError("it has no families")
            self.image_config = as_image_config(self.index.get("image", {}))
        except (OSError, ValueError, RecursionError) as error:
            raise MoonflowError(f"{path}/index.json cannot be read ({error}); run prepare_data again") from error
        self.tokenizer = Tokenizer.load(path)
        self._lengths = read_lengths(path)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "tokenizer"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.tokenizer = Tokenizer.load(self.path)

    def with_family(self, name: str, entries: Sequence[dict[str, Any]], source: ShardSource) -> DataFolder:
        """This data with one more family to train on, whose shards lie elsewhere.

        Args:
            entries: its shards, ``{"shard": name, "samples": count}``.
            source: of these shards.

        Raises:
            MoonflowError: the data has a family of that name.
        """
        if name in self.index["families"]:
            raise MoonflowError(f"{self.path}/index.json has a family {name!r} already: give yours another name")
        joined = copy(self)
        joined.index = {**self.index, "families": {**self.index["families"], name: {"train": list(entries)}}}
        joined.source = JoinedShards(self.source, source, [entry["shard"] for entry in entries])
        joined._lengths = dict(self._lengths)
        return joined

    def families(self) -> list[str]:
        """The names of all families, sorted."""
        return sorted(self.index["families"])

    def entries(self, family: str, split: Split) -> list[dict[str, Any]]:
        """The family's shards: ``{"shard": name, "samples": count}``; MoonflowError if there are none."""
        entries = self.index["families"].get(family, {}).get(split, [])
        if not entries:
            raise MoonflowError(
                f"no {split} shards of family {family!r} in {self.path}/index.json; "
                f"prepare_data writes {self.families()}"
            )
        return entries

    def samples(self, family: str, split: Split) -> Iterator[Sample]:
        """All samples of a family, in the order they were written."""
        for entry in self.entries(family, split):
            shard = Shard(self.source.open(entry["shard"]), entry["shard"])
            for number in range(entry["samples"]):
                yield shard[number]
            shard.close()

    def family(self, name: str, seed: int) -> FamilyShards:
        """A family's train samples in a seeded order, with their lengths."""
        entries = self.entries(name, "train")
        return FamilyShards(self.source, entries, seed, [self.lengths(entry) for entry in entries])

    def lengths(self, entry: Mapping[str, Any]) -> Lengths:
        """int32 [samples, 2] of a shard: tokens and media pads. Measured now if the folder does not hold them."""
        name = entry["shard"]
        if name not in self._lengths:
            shard = Shard(self.source.open(name), name)
            self._lengths[name] = measure(shard, entry["samples"], self.tokenizer, self.image_config)[0]
            shard.close()
        return self._lengths[name]

    def with_user_families(self, text: Mapping[str, float], vision: Mapping[str, float]) -> tuple[Mixture, Mixture]:
        """The text and the vision mixture, each with the user's families whose tokens are mostly of that kind.
        Conversations join neither."""
        user_data = {name: one for name, one in self.index.get("own", {}).items() if not one.get("conversations")}
        return (
            {**text, **{name: entry["weight"] for name, entry in user_data.items() if not entry["vision"]}},
            {**vision, **{name: entry["weight"] for name, entry in user_data.items() if entry["vision"]}},
        )

    def require_own(self, shares: Mapping[str, float], tokens_per_row: int) -> list[str]:
        """Check that the user's sources in ``shares`` are there and that their samples fit into rows.

        Returns:
            A line for each of the first samples that are longer than a row, which are left out, and one for the others.

        Raises:
            MoonflowError: a source is not in this data, or more than ``MAX_BROKEN`` of one are too long.
        """
        own = self.index.get("own", {})
        told: list[str] = []
        for name in shares:
            if name not in own:
                known = f"it has {', '.join(sorted(own))}" if own else "it has none"
                raise MoonflowError(
                    f"source {name!r} is not among your sources of this data ({known}): give it in prepare_data.sources"
                )
            entries, files = self.entries(name, "train"), own[name].get("conversations", [])
            total = sum(entry["samples"] for entry in entries)
            tokens = {entry["shard"]: self.lengths(entry)[:, 0] for entry in entries}
            long = [(shard, number) for shard in tokens for number in np.flatnonzero(tokens[shard] > tokens_per_row)]
            lines = [
                f"{self._origin(shard, int(number), files)} has {tokens[shard][number]} tokens, a row {tokens_per_row}"
                for shard, number in long[:NAMED]
            ]
            if len(long) > MAX_BROKEN * total:
                raise MoonflowError(
                    f"{len(long)} of {total} samples of {name} are longer than a row, more than {MAX_BROKEN:.0%} "
                    f"({lines[0]}): raise tokens_per_row, or shorten them"
                )
            told += [f"{name}: {line}: it is left out" for line in lines]
            if len(long) > NAMED:
                told.append(f"{name}: and {len(long) - NAMED} more of {total} samples are left out")
        return told

    def _origin(self, shard: str, number: int, files: Sequence[str]) -> str:
        """File and line of a sample, or its key."""
        key = attempt(f"shard {shard}, sample {number}", self._key, shard, number)
        return one_line(key.line if isinstance(key, Problem) else line_of(key, files))

    def _key(self, shard: str, number: int) -> str:
        with closing(Shard(self.source.open(shard), shard)) as opened:
            return opened[number].key

    def mixture(
        self, weights: Mapping[str, float] | Schedule, *, tokens_per_row: int, rows: int, seed: int, steps: int = 0
    ) -> Callable[[StreamState | None], MixtureStream]:
        """A function that opens a stream of train samples in the proportions of ``weights``.

        It takes the state to continue from, or None for the beginning.

        Args:
            weights: family -> share of the tokens, or a schedule of such shares.
            tokens_per_row, rows: shape of a global batch.
            seed: of the order.
            steps: batches of the whole run; a schedule that changes needs them to know the progress.

        Raises:
            MoonflowError: a family without train shards, or a schedule that changes without ``steps``.
        """
        schedule = weights if isinstance(weights, Schedule) else Schedule.constant(weights)
        if schedule.changes and steps < 1:
            raise MoonflowError(
                "a mixture that changes depends on the run's number of steps: give it as mixture(steps=)"
            )
        for name in schedule.families:
            self.entries(name, "train")
        recipe = MixtureRecipe(self, schedule, tokens_per_row, rows, seed, steps if schedule.changes else 0)
        return partial(MixtureStream, recipe)
