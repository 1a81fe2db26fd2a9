"""What a family is: a seeded generator of one kind of sample, its sources split into train and eval (ours)."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from model.data.samples.sample import Ability, Modality, Sample, Split

SPLITS: tuple[Split, ...] = ("train", "eval")
BUCKETS, EVAL_BUCKETS = 100, 10  # of operands; the first ones are eval's
Option = TypeVar("Option")


def held_out(source: str, percent: int = 10) -> bool:
    """Whether ``source`` belongs to the eval split: about ``percent`` of all names, always the same ones.

    A hash of the name decides, so adding a source never moves another one into the other split.
    """
    return zlib.crc32(source.encode()) % 100 < percent


def in_split(source: str, split: Split, percent: int = 10) -> bool:
    """Whether ``source`` belongs to ``split``, of which eval gets about ``percent`` of all names."""
    return held_out(source, percent) == (split == "eval")


def operand_source(kind: str, operands: str, split: Split) -> str | None:
    """The held-out unit of a problem about ``operands``, one of `operand_sources`; None if it is of the other split.

    The operands, not seeds, are hashed, so that no eval problem is a training problem.
    """
    bucket = zlib.crc32(f"{kind}/{operands}".encode()) % BUCKETS
    return f"{kind}/operands-{bucket:02d}" if (bucket < EVAL_BUCKETS) == (split == "eval") else None


def operand_sources(kinds: Iterable[str], split: Split) -> list[str]:
    """The held-out units of problems of these kinds."""
    buckets = range(EVAL_BUCKETS) if split == "eval" else range(EVAL_BUCKETS, BUCKETS)
    return [f"{kind}/operands-{bucket:02d}" for kind in kinds for bucket in buckets]


def choose(rng: np.random.Generator, split: Split, options: Sequence[Option]) -> Option:
    """One of two or more options, of which the last is held out: training never gets it, eval half of the time."""
    last = len(options) - 1
    return options[last if split == "eval" and rng.random() < 0.5 else int(rng.integers(last))]


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
