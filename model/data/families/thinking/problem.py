"""What a problem with visible thinking is (source: ours)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from model.data.samples.sample import Split

Style = Literal["short", "long"]


@dataclass(frozen=True)
class Problem:
    """A problem and its solution in two styles.

    Attributes:
        fields: values of the ``{names}`` in the kind's wordings.
        operands: what the problem is about, as a text; two problems with the same are the same.
        short: the key steps on one line, which ends with the answer.
        long: every step, one a line; the last one ends with the answer. No space comes before the answer, so that it
            has the same tokens there and in the reply.
        answer: the reply.
    """

    fields: Mapping[str, object]
    operands: str
    short: str
    long: tuple[str, ...]
    answer: str

    def thinking(self, style: Style) -> str:
        return self.short if style == "short" else "\n".join(self.long)


@dataclass(frozen=True)
class Kind:
    """One kind of problem.

    Attributes:
        name: in the key of its samples.
        wordings: of the question. Training never shows the last one, but all of its words: a small model learns
            wordings by heart, and answers none that has a word which is new to it (``tests/benchmarks/wordings.py``).
        draw: (rng, split) -> a problem; words and names in it are of the split.
    """

    name: str
    wordings: tuple[str, ...]
    draw: Callable[[np.random.Generator, Split], Problem]
