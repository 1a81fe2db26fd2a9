"""``needle``: a long text that hides a record and ends with the record's name, to be completed (source: ours).

The text is documentation of the standard library, which says nothing about the record: the number after its name is
read from its place, or guessed among 9,000. Training also hides two or three records. The loss covers the numbers at
the end and nothing else.

Held out: the words that name records, as in ``recall``, and the modules and topics of the text, as in ``stdlib_text``.
"""

from __future__ import annotations

import math

import numpy as np

from model.data.families.family import Family
from model.data.families.recall import recall_sources, words
from model.data.families.stdlib import stdlib_text
from model.data.samples.sample import Sample, Split

SHORTEST, LONGEST = 200, 1700  # characters of a text, about 120 and 900 tokens of the tiny tokenizer (ours)
RECORDS = (1, 1, 2, 2, 3)  # of a training sample; an evaluation has one (ours)
JOINTS = (":", "=")


def filler(rng: np.random.Generator, split: Split, characters: int) -> list[str]:
    """Lines of documentation, ``characters`` in all."""
    lines: list[str] = []
    missing = characters
    while missing > 0:
        text = stdlib_text(rng, split, 0).segments[0]["text"][:missing]
        lines += text.split("\n")
        missing -= len(text) + 1
    return lines


def needle_sample(
    rng: np.random.Generator, split: Split, index: int, characters: int, depth: tuple[float, float] = (0.0, 1.0)
) -> Sample:
    """One text and what is asked at its end.

    Args:
        characters: length of the text without its records.
        depth: bounds of the records' places: 0 is the text's beginning, 1 its end.
    """
    buckets = recall_sources(split)
    source = buckets[int(rng.integers(len(buckets)))]
    pool = words(source, split)
    count = int(rng.choice(RECORDS)) if split == "train" else 1
    names = [pool[i] for i in rng.choice(len(pool), count, replace=False)]
    numbers = rng.choice(np.arange(1000, 10_000), count, replace=False)
    joint = JOINTS[int(rng.integers(len(JOINTS)))]
    lines = filler(rng, split, characters)
    # From the last place to the first, so that no record moves another one's place.
    records = zip(rng.uniform(*depth, count), names, numbers, strict=True)
    for place, name, number in sorted(records, reverse=True):
        lines.insert(round(place * len(lines)), f"{name}{joint}{number}")
    segments = [("\n".join(lines), False)]
    for name, number in zip(names, numbers, strict=True):
        segments += [(f"\n{name}{joint}", False), (str(number), True)]
    return Sample(
        key=f"needle-{index:08d}", family="needle", ability="knowledge", modality="text", source=source,
        segments=[{"type": "text", "text": text, "loss": loss} for text, loss in segments],
    )  # fmt: skip


def needle_family(longest: int) -> Family:
    """Texts of ``SHORTEST`` to ``longest`` characters; the logarithm of the length is uniform."""

    def generate(rng: np.random.Generator, split: Split, index: int) -> Sample:
        characters = round(math.exp(rng.uniform(math.log(SHORTEST), math.log(longest))))
        return needle_sample(rng, split, index, characters)

    return Family("needle", "knowledge", "text", "document", generate, recall_sources)


NEEDLE = needle_family(LONGEST)
