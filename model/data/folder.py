"""A data folder as ``prepare_data`` writes it: tokenizer, index.json, lengths and shards (source: ours)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model.data.lengths import Lengths, measure, read_lengths
from model.data.mixtures import Mixture
from model.data.order import FamilyShards
from model.data.sample import Sample, Split
from model.data.schedule import Schedule
from model.data.shards import Shard
from model.data.source import LocalShards, ShardSource
from model.data.stream import StreamRecipe
from model.errors import MoonflowError
from model.image import as_image_config
from model.tokenizer import Tokenizer


class DataFolder:
    """Opens a data folder.

    Args:
        path: of tokenizer, index.json and lengths.
        source: of the shards; the same folder unless given.

    Raises:
        MoonflowError: when index.json is missing or damaged, or a family asked for is not in it.
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

    def families(self) -> list[str]:
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
        """int32 [samples, 2] of a shard: tokens and media pads. Measured here if the folder does not say."""
        name = entry["shard"]
        if name not in self._lengths:
            shard = Shard(self.source.open(name), name)
            self._lengths[name] = measure(shard, entry["samples"], self.tokenizer, self.image_config)[0]
            shard.close()
        return self._lengths[name]

    def joined(self, text: Mapping[str, float], vision: Mapping[str, float]) -> tuple[Mixture, Mixture]:
        """The two mixtures with the user's own families: each by its weight, where most of its tokens belong."""
        own = self.index.get("own", {})
        return (
            {**text, **{name: entry["weight"] for name, entry in own.items() if not entry["vision"]}},
            {**vision, **{name: entry["weight"] for name, entry in own.items() if entry["vision"]}},
        )

    def mixture(
        self, weights: Mapping[str, float] | Schedule, *, tokens_per_row: int, rows: int, seed: int, steps: int = 0
    ) -> StreamRecipe:
        """Train samples in the proportions of ``weights``, to be opened at the beginning (None) or at a saved state.

        Args:
            weights: family -> share of the tokens, or a schedule of such shares.
            tokens_per_row, rows: shape of a global batch.
            seed: of the order.
            steps: batches of the whole run, by which a schedule that changes measures progress.

        Raises:
            MoonflowError: a family without train shards, or a schedule that changes without ``steps``.
        """
        schedule = weights if isinstance(weights, Schedule) else Schedule.constant(weights)
        if schedule.changes and steps < 1:
            raise MoonflowError("a mixture that changes needs the whole run's number of steps: give mixture(steps=)")
        for name in schedule.families:
            self.entries(name, "train")
        return StreamRecipe(self, schedule, tokens_per_row, rows, seed, steps if schedule.changes else 0)
