"""What a family is: a seeded generator of one kind of sample, its sources split into train and eval (ours)."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from model.data.samples.sample import Ability, Modality, Sample, Split

SPLITS: tuple[Split, ...] = ("train", "eval")


def held_out(source: str, percent: int = 10) -> bool:
    """Whether ``source`` belongs to the eval split: about ``percent`` of all names, always the same ones.

    A hash of the name decides, so adding a source never moves another one into the other split.
    """
    return zlib.crc32(source.encode()) % 100 < percent


def in_split(source: str, split: Split, percent: int = 10) -> bool:
    """Whether ``source`` belongs to ``split``, of which eval gets about ``percent`` of all names."""
    return held_out(source, percent) == (split == "eval")


@dataclass(frozen=True)
class Family:
    """One kind of sample.

    Attributes:
        name: also the ``family`` of its samples and the stem of its shards.
        ability, modality: where its samples count.
        kind: ``document`` (segments), ``conversation`` (messages) or ``task`` (messages, answer, reward).
        generate: (rng, split, index) -> one sample, a pure function of its arguments.
        sources: split -> the held-out units it draws from; the two lists share nothing.
    """

    name: str
    ability: Ability
    modality: Modality
    kind: Literal["document", "conversation", "task"]
    generate: Callable[[np.random.Generator, Split, int], Sample]
    sources: Callable[[Split], list[str]]

    def sample(self, seed: int, split: Split, index: int) -> Sample:
        """Sample ``index`` of ``split``: a pure function of (seed, split, family, index)."""
        rng = np.random.default_rng([seed, SPLITS.index(split), zlib.crc32(self.name.encode()), index])
        return self.generate(rng, split, index)
