"""What a kind of function to write is (source: ours)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from string import Template
from typing import Any

import numpy as np

Fields = Mapping[str, Any]
Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Kind:
    """One kind of function. ``$names`` in its texts are parameters, which are drawn for each task.

    Attributes:
        call: the function with its arguments, ``above(xs)``. Its name is the kind's too, and in the key of its samples.
        wordings: what it returns. Training never shows the last one.
        styles: programs that define it. Training never shows the last one.
        mistakes: (part of a program, what people write there by mistake). None of them makes a loop endless.
        parameters: all choices of values for the ``$names`` (`space`).
        arguments: (rng, parameters) -> arguments of one test.
        solve: (parameters, *arguments) -> the right value, found in another way than the programs do where that is
            possible. An int, a bool, a str, or a list of them.
    """

    call: str
    wordings: tuple[str, ...]
    styles: tuple[str, ...]
    mistakes: tuple[tuple[str, str], ...]
    parameters: tuple[Fields, ...]
    arguments: Callable[[np.random.Generator, Fields], Arguments]
    solve: Callable[..., Any]

    @property
    def name(self) -> str:
        return self.call.partition("(")[0]

    def applied(self, arguments: Arguments) -> str:
        """A call of the function, as Python writes it."""
        return f"{self.name}({', '.join(map(repr, arguments))})"


def space(**values: Iterable[Any]) -> tuple[Fields, ...]:
    """Every choice of one value for each name."""
    return tuple(dict(zip(values, chosen, strict=True)) for chosen in product(*values.values()))


def filled(text: str, fields: Fields) -> str:
    """The text with the values of its ``$names``. KeyError if one of them has no value."""
    return Template(text).substitute(fields)


def numbers(rng: np.random.Generator, least: int = 0, most: int = 5, below: int = 30) -> list[int]:
    """``least`` to ``most`` numbers from 0."""
    drawn: list[int] = rng.integers(below, size=int(rng.integers(least, most + 1))).tolist()
    return drawn


def word(rng: np.random.Generator, least: int = 1, most: int = 7, letters: str = "abcdefghinorstu") -> str:
    return "".join(letters[i] for i in rng.integers(len(letters), size=int(rng.integers(least, most + 1))))
