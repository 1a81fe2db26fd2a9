"""Mistakes that people make in a cell, each of which raises an error (source: ours)."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

Mistake = Callable[[np.random.Generator, str], str]
WRONG_NAMES = ("image", "im", "picture", "frame")
WRONG_METHODS = {
    ".sum(": ".count(", ".any(": ".some(", ".argmin(": ".index(", "count_nonzero": "countnonzero",
    "flatnonzero": "flat_nonzero", ".astype(": ".as_type(", ".ravel(": ".flat(", "argwhere": "arg_where",
}  # fmt: skip


def _name(rng: np.random.Generator, cell: str) -> str:
    """The picture has another name."""
    wrong = WRONG_NAMES[int(rng.integers(len(WRONG_NAMES)))]
    return re.sub(r"\bimages\b", "frames", re.sub(r"\bimg\b", wrong, cell))


def _forgotten(rng: np.random.Generator, cell: str) -> str:
    """The first assignment is left out."""
    return re.sub(r"\A\w+ = .*\n", "", cell)


def _method(rng: np.random.Generator, cell: str) -> str:
    """A function of another name."""
    known = [name for name in WRONG_METHODS if name in cell]
    if not known:
        return cell
    name = known[int(rng.integers(len(known)))]
    return cell.replace(name, WRONG_METHODS[name], 1)


def _axis(rng: np.random.Generator, cell: str) -> str:
    """An axis that a picture does not have, because they were counted from 1."""
    return re.sub(r"\.(sum|any|mean)\([01]\)", r".\1(2)", cell, count=1).replace(".shape[1]", ".shape[2]")


def _channel(rng: np.random.Generator, cell: str) -> str:
    """Channels counted from 1."""
    return cell.replace("img[..., 2]", "img[..., 3]")


def _one_too_far(rng: np.random.Generator, cell: str) -> str:
    """A loop that goes one column too far."""
    return re.sub(r"(range\(1, \w+\.shape\[1\])\)", r"\1 + 1)", cell)


def _frame(rng: np.random.Generator, cell: str) -> str:
    """Frames counted from 1."""
    return cell.replace("images[1]", "images[2]").replace("images[0]", "images[1]")


def _unpacked(rng: np.random.Generator, cell: str) -> str:
    """The pair that a function returns is not taken apart."""
    return re.sub(r"^labels, n = ", "labels = ", cell, flags=re.MULTILINE)


def _uncalled(rng: np.random.Generator, cell: str) -> str:
    """A method that is named, not called."""
    return re.sub(r"\.sum\(\) (//|>)", r".sum \1", cell, count=1)


def _bracket(rng: np.random.Generator, cell: str) -> str:
    """The last bracket is not closed."""
    return cell.removesuffix(")")


def _colon(rng: np.random.Generator, cell: str) -> str:
    """A block without its colon."""
    return re.sub(r":\n", "\n", cell, count=1)


GENERAL: tuple[Mistake, ...] = (_name, _forgotten, _bracket)  # one of them fits every cell
SPECIAL: tuple[Mistake, ...] = (_method, _axis, _channel, _one_too_far, _frame, _unpacked, _uncalled, _colon)


def wrong_versions(rng: np.random.Generator, cell: str) -> list[str]:
    """The cell with one mistake, in random order; not all of them need raise an error."""
    groups = (SPECIAL, GENERAL) if rng.random() < 0.6 else (GENERAL, SPECIAL)  # or few would be special
    tried = (group[number](rng, cell) for group in groups for number in rng.permutation(len(group)).tolist())
    return [wrong for wrong in tried if wrong != cell]
