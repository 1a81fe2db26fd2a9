"""``recall``: strings and key-value pairs that come back; the loss covers only what the context determines (ours).

Every tool answer and every question about a record depends on copying from context. A tiny model learns it only from
diverse strings: words of the standard library and city names, random characters, random numbers, mixed.
Held out: the words, in buckets; each document draws its words from one bucket.
"""

from __future__ import annotations

import string
import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np

from model.data.families.entities import entities
from model.data.families.family import SPLITS, Family
from model.data.families.stdlib import identifiers
from model.data.samples.sample import Sample, Split

BUCKETS = 16
CHARACTERS_PER_DOCUMENT = 200
NUMBERS_SHARE = 0.4  # of documents (ours)
LETTERS = np.array(list(string.ascii_letters))
CHARACTERS = np.array(list(string.ascii_letters + string.digits + "-_.:/#+*=()[]<>"))
DIGITS = np.array(list(string.digits))
JOINTS = ("=", ": ", ":", " is ")
NAMES, NUMBERS, MIXED = (0,), (1,), (0, 0, 1, 2)  # styles of `_item`
SEPARATORS = (" ", " ", " ", ", ", "\n", "; ")


@cache
def _buckets(split: Split) -> dict[str, list[str]]:
    buckets: dict[str, list[str]] = {f"words/{split}-{number:02d}": [] for number in range(BUCKETS)}
    cities = {part: [entity.name for entity in entities("city", part)] for part in SPLITS}
    named = set().union(*cities.values())
    # A city's name goes where its country goes, even if it is also an identifier.
    for word in [word for word in identifiers(split) if word not in named] + cities[split]:
        buckets[f"words/{split}-{zlib.crc32(word.encode()) % BUCKETS:02d}"].append(word)
    return buckets


def recall_sources(split: Split) -> list[str]:
    """Buckets of words. No word is in a bucket of both splits."""
    return list(_buckets(split))


def words(source: str, split: Split) -> list[str]:
    """The words of one bucket."""
    return _buckets(split)[source]


def _item(rng: np.random.Generator, pool: list[str], style: int) -> str:
    """A word, a number, or a run of random characters."""
    if style == 0:
        return pool[int(rng.integers(len(pool)))]
    length = int(rng.integers(1, 6))
    if style == 1:
        return "".join(DIGITS[rng.integers(len(DIGITS), size=length)])
    # Letters at both ends: punctuation there would merge with what surrounds it into other tokens.
    first, last = LETTERS[rng.integers(len(LETTERS), size=2)]
    return first + "".join(CHARACTERS[rng.integers(len(CHARACTERS), size=length - 1)]) + last


def _items(rng: np.random.Generator, pool: list[str], count: int, styles: Sequence[int] | None) -> list[str]:
    """``count`` different items.

    Without ``styles``, a share ``NUMBERS_SHARE`` of the calls gives numbers only, whose ten tokens a model learns to
    copy first, and the other calls give a mixture.
    """
    styles = styles or (NUMBERS if rng.random() < NUMBERS_SHARE else MIXED)
    found: dict[str, None] = {}
    while len(found) < count:
        found[_item(rng, pool, styles[int(rng.integers(len(styles)))])] = None
    return list(found)


def _repeat(rng: np.random.Generator, pool: list[str], styles: Sequence[int] | None) -> list[tuple[str, bool]]:
    """A string, then the same string again and again: most of the document is determined by its beginning."""
    separator = SEPARATORS[int(rng.integers(len(SEPARATORS)))]
    text = separator.join(_items(rng, pool, int(rng.integers(2, 8)), styles))
    times = int(np.clip(CHARACTERS_PER_DOCUMENT // len(text) - 1, 1, 8))
    return [(text, False)] + [("\n" + text, True)] * times


def _pairs(rng: np.random.Generator, pool: list[str], styles: Sequence[int] | None) -> list[tuple[str, bool]]:
    """``key=value`` lines, then all keys again, twice, in other orders; the loss covers the values that follow."""
    items = _items(rng, pool, 2 * int(rng.integers(2, 5)), styles)
    pairs = list(zip(items[::2], items[1::2], strict=True))
    joint = JOINTS[int(rng.integers(len(JOINTS)))]
    segments = [("\n".join(key + joint + value for key, value in pairs), False)]
    for i in (*rng.permutation(len(pairs)), *rng.permutation(len(pairs))):
        key, value = pairs[i]
        # A space belongs to the word after it: byte-level BPE would not split the same elsewhere.
        segments += [(f"\n{key}{joint.rstrip(' ')}", False), (" " * joint.endswith(" ") + value, True)]
    return segments


def recall(rng: np.random.Generator, split: Split, index: int) -> Sample:
    """A string that is repeated, or key-value pairs whose keys come back."""
    return _sample(rng, split, index, None)


def names_only(rng: np.random.Generator, split: Split, index: int) -> Sample:
    """A document as `recall` makes them, of the split's words alone: what copying of unseen names is measured on."""
    return _sample(rng, split, index, NAMES)


def _sample(rng: np.random.Generator, split: Split, index: int, styles: Sequence[int] | None) -> Sample:
    names = recall_sources(split)
    source = names[int(rng.integers(len(names)))]
    segments = (_repeat if rng.random() < 0.5 else _pairs)(rng, words(source, split), styles)
    return Sample(
        key=f"recall-{index:08d}", family="recall", ability="knowledge", modality="text", source=source,
        segments=[{"type": "text", "text": text, "loss": loss} for text, loss in segments],
    )  # fmt: skip


RECALL = Family("recall", "knowledge", "text", "document", recall, recall_sources)
