"""What a kind of image program is: scenes, wordings of one question, and programs that answer it (source: ours)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from string import Template

import numpy as np
from numpy.typing import NDArray

from model.data.families.family import choose
from model.data.samples.sample import Split

Image = NDArray[np.uint8]
MASK_NAMES = ("mask", "ink", "on", "b")  # what programs call a binary picture


@dataclass(frozen=True)
class Scene:
    """One picture or several frames, and what is true of them.

    Attributes:
        images: uint8 [H, W] or [H, W, 3]; one of them is ``img`` of the program, several are its list ``images``.
        answer: of the kind's question; it comes from how the scene was built, not from its pixels.
        source: the held-out unit; of the split that the scene was drawn for.
        fields: values of the ``$names`` in wordings and programs.
    """

    images: tuple[Image, ...]
    answer: int | str
    source: str
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Style:
    """One way to write the program: ``cells`` are run one after the other, and the last one prints the answer."""

    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """One question, and the programs that answer it.

    Attributes:
        name: in the key of its samples.
        wordings: of the question. Training never shows the last one.
        styles: of the program. Training never shows the last one.
        draw: (rng, split, height, width) -> a scene whose pictures have this size.
        colour: whether the pictures have three channels.
        least_width: pixels; the pictures need at least so many columns.
    """

    name: str
    wordings: tuple[str, ...]
    styles: tuple[Style, ...]
    draw: Callable[[np.random.Generator, Split, int, int], Scene]
    colour: bool = False
    least_width: int = 28

    def choose(self, rng: np.random.Generator, split: Split) -> tuple[str, Style]:
        """A wording and a style. Each of an eval sample is the held-out one with probability 1/2."""
        return choose(rng, split, self.wordings), choose(rng, split, self.styles)


def filled(text: str, fields: Mapping[str, object]) -> str:
    """The text with the values of its ``$names``. KeyError if one of them has no value."""
    return Template(text).substitute(fields)
