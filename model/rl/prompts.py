"""Which task comes when: abilities in turn, families in turn within one, samples in a seeded order (source: ours).

Prompts are grouped by ability rather than by modality (K2.5 paper, joint RL).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from model.data.order import FamilyShards
from model.data.sample import ABILITIES, Sample
from model.data.source import ShardSource
from model.errors import MoonflowError

PROBED = 256  # a family without a task among so many samples is a family of documents


class FamilyTasks:
    """The tasks of one family, without its documents (captions, say): n -> the n-th in the shards' seeded order."""

    def __init__(self, shards: FamilyShards) -> None:
        self._shards = shards
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
        if self._shards[self._read].reward:
            self._positions.append(self._read)
        self._read += 1


class PromptPool:
    """Training prompts of a data folder: ``pool[n]`` is the n-th of a run, a pure function of (shards, seed, n).

    Only train shards are opened. So the only thing to save is how many were drawn.

    Args:
        source: of the shards.
        index: the data's index.json.
        families: names to draw from; None for all of the data but ``without``.
        modalities: of tasks; a family of another one is left out.

    Raises:
        MoonflowError: when a family has no train shards, or no family has tasks.
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
    ) -> None:
        wanted, excluded = set(modalities), set(without)
        self._groups: dict[str, list[FamilyTasks]] = {}
        self.families: dict[str, list[str]] = {}
        names = sorted(index["families"] if families is None else families)
        for number, name in enumerate(name for name in names if name not in excluded):
            entries = index["families"].get(name, {}).get("train")
            if not entries:
                raise MoonflowError(f"no train shards of family {name!r} in the data's index.json")
            tasks = FamilyTasks(FamilyShards(source, entries, seed * 1000 + number))
            if (first := tasks.first()) is not None and first.modality in wanted:
                self._groups.setdefault(first.ability, []).append(tasks)
                self.families.setdefault(first.ability, []).append(name)
        if not self._groups:
            raise MoonflowError(f"the data has no task of modality {' or '.join(sorted(wanted))} to train on")
        self.abilities = [ability for ability in ABILITIES if ability in self._groups]

    def __getitem__(self, n: int) -> Sample:
        turn, ability = divmod(n, len(self.abilities))
        group = self._groups[self.abilities[ability]]
        position, family = divmod(turn, len(group))
        return group[family][position]
