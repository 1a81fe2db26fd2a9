"""The order of tasks: abilities in turn, within an ability its families in turn, samples in a seeded order (ours).

Prompts are grouped by ability rather than by modality (K2.5 paper, joint RL).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from model.boundary.errors import MoonflowError
from model.data.order.family_order import FamilyShards
from model.data.samples.problems import MAX_BROKEN
from model.data.samples.sample import ABILITIES, Sample
from model.data.samples.shard_source import ShardSource

log = logging.getLogger(__name__)

PROBED = 256  # samples; a family without a task among its first ones is a family of documents


@dataclass
class Unreadable:
    """Samples that cannot be read: each is named once and left out, up to the share ``MAX_BROKEN``."""

    total: int
    lost: set[tuple[str, int]] = field(default_factory=set)

    def add(self, family: str, number: int, error: MoonflowError) -> None:
        """Count a sample, and log the first error of it.

        Raises:
            MoonflowError: too many samples cannot be read.
        """
        if (family, number) in self.lost:
            return
        self.lost.add((family, number))
        log.warning("%s (it is left out)", error)
        if len(self.lost) > MAX_BROKEN * self.total:
            raise MoonflowError(
                f"{len(self.lost)} of {self.total} samples to take prompts from cannot be read, more than "
                f"{MAX_BROKEN:.0%}: fix the data; the last was: {error}"
            )


Usable = Callable[[Sample], bool]
"""Whether a task can be a prompt."""


class FamilyTasks:
    """The usable tasks of one family without its documents (such as captions): ``[n]`` is the n-th in the seeded
    order. ``unusable`` tasks were passed over so far."""

    def __init__(self, name: str, shards: FamilyShards, unreadable: Unreadable, usable: Usable) -> None:
        self._name, self._shards, self._unreadable, self._usable = name, shards, unreadable, usable
        self.unusable = 0
        self._positions: list[int] = []
        self._read = 0

    def first(self) -> Sample | None:
        """The first task, or None for a family of documents."""
        while not self._positions and self._read < min(PROBED, self._shards.total):
            self._advance()
        return self._shards[self._positions[0]] if self._positions else None

    def __getitem__(self, n: int) -> Sample:
        while len(self._positions) <= n:
            self._advance()
        return self._shards[self._positions[n]]

    def _advance(self) -> None:
        number, offset = self._shards.locate(self._read)
        shard = self._shards.shard(number, self._read // self._shards.total)
        try:
            sample = shard[offset]
            if sample.reward and self._usable(sample):
                self._positions.append(self._read)
            elif sample.reward:
                self.unusable += 1
        except MoonflowError as error:
            self._unreadable.add(f"{self._name}/{number}", offset, error)
        self._read += 1


class PromptPool:
    """Training prompts of a data folder: ``pool[n]`` is the n-th of a run, a pure function of (shards, seed, n).

    ``families`` lists those that it draws from by ability, ``with_rubrics`` those whose tasks a judge can score.
    Only train shards are opened. To resume, only the number of prompts that were drawn must be saved.

    Args:
        source: of the shards.
        index: the data's index.json.
        families: names to draw from; None for all families of the data except ``without``.
        modalities: of the tasks; families of other modalities are left out.
        usable: leaves out tasks of which it says no.

    Raises:
        MoonflowError: a family has no train shards or no usable task, no family has tasks, or too many samples
            cannot be read.
    """

    def __init__(
        self,
        source: ShardSource,
        index: Mapping[str, Any],
        *,
        modalities: Iterable[str],
        seed: int,
        families: Iterable[str] | None = None,
        without: Iterable[str] = (),
        usable: Usable = lambda sample: True,
    ) -> None:
        wanted, excluded = set(modalities), set(without)
        self._groups: dict[str, list[FamilyTasks]] = {}
        self.families: dict[str, list[str]] = {}
        self.with_rubrics: list[str] = []
        known = set(index["families"])
        names = sorted(known if families is None else families)
        chosen = {name: index["families"].get(name, {}).get("train") for name in names if name not in excluded}
        for name, entries in chosen.items():
            if not entries:
                raise MoonflowError(f"no train shards of family {name!r} in the data's index.json")
        unreadable = Unreadable(sum(entry["samples"] for entries in chosen.values() for entry in entries))
        for number, (name, entries) in enumerate(chosen.items()):
            tasks = FamilyTasks(name, FamilyShards(source, entries, seed * 1000 + number), unreadable, usable)
            first = tasks.first()
            if first is None and tasks.unusable:
                raise MoonflowError(
                    f"none of the first {tasks.unusable} tasks of {name} can be a prompt: make the data with another "
                    "mixture, or leave the family out"
                )
            if first is not None and first.modality in wanted:
                self._groups.setdefault(first.ability, []).append(tasks)
                self.families.setdefault(first.ability, []).append(name)
                self.with_rubrics += [name] if first.rubric else []
        if not self._groups:
            besides = f", apart from {', '.join(sorted(excluded & known))}" if excluded & known else ""
            raise MoonflowError(f"the data has no task of modality {' or '.join(sorted(wanted))} to train on{besides}")
        self.abilities = [ability for ability in ABILITIES if ability in self._groups]

    def __getitem__(self, n: int) -> Sample:
        turn, ability = divmod(n, len(self.abilities))
        group = self._groups[self.abilities[ability]]
        position, family = divmod(turn, len(group))
        return group[family][position]
