"""A data folder as ``prepare_data`` writes it: tokenizer, index.json and shards (source: ours)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from model.data.sample import Sample, Split
from model.data.schedule import Schedule
from model.data.shards import read_shard
from model.data.stream import FamilyShards, MixtureStream, StreamState
from model.data.tokenize import tokenize
from model.errors import MoonflowError
from model.image import ImageConfig
from model.tokenizer import Tokenizer


class DataFolder:
    """Opens a data folder.

    Raises:
        MoonflowError: when index.json is missing or damaged, or a family asked for is not in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.index = json.loads((path / "index.json").read_text())
            self.image_config = ImageConfig.model_validate(self.index.get("image", {}))
        except (OSError, ValueError) as error:
            raise MoonflowError(f"{path}/index.json cannot be read ({error}); run prepare_data again") from error
        self.tokenizer = Tokenizer.load(path)

    def families(self) -> list[str]:
        return sorted(self.index["families"])

    def _entries(self, family: str, split: Split) -> list[dict]:
        entries = self.index["families"].get(family, {}).get(split, [])
        if not entries:
            raise MoonflowError(
                f"no {split} shards of family {family!r} in {self.path}/index.json; "
                f"prepare_data writes {self.families()}"
            )
        return entries

    def samples(self, family: str, split: Split) -> Iterator[Sample]:
        """All samples of a family, in the order they were written."""
        for entry in self._entries(family, split):
            yield from read_shard(self.path / entry["shard"])

    def mixture(
        self, weights: Mapping[str, float] | Schedule, *, tokens_per_row: int, rows: int, seed: int, steps: int = 0
    ) -> Callable[[StreamState | None], MixtureStream]:
        """Train shards in the proportions of ``weights``, to be opened at the beginning (None) or at a saved state.

        Args:
            weights: family -> share of the tokens, or a schedule of such shares.
            tokens_per_row, rows: shape of a batch.
            seed: of the order.
            steps: batches of the whole run, by which a schedule that changes measures progress.

        Raises:
            MoonflowError: a family without train shards, or a schedule that changes without ``steps``.
        """
        schedule = weights if isinstance(weights, Schedule) else Schedule.constant(weights)
        if schedule.changes and steps < 1:
            raise MoonflowError(
                "a mixture that changes needs the whole run's number of steps: give mixture(steps=)"
            )
        families = {
            name: FamilyShards(self.path, self._entries(name, "train"), seed * 1000 + number)
            for number, name in enumerate(schedule.families)
        }
        return lambda state: MixtureStream(
            families,
            schedule,
            partial(tokenize, tokenizer=self.tokenizer, image_config=self.image_config),
            tokens_per_row=tokens_per_row,
            rows=rows,
            pad_id=self.tokenizer.pad_id,
            steps=steps,
            state=state,
        )
