"""Problems with data, and notes on files that were not used: one line each (source: ours).

Data that others made can make any library raise anything. ``attempt`` is the one place that turns such an exception
into a problem of the record that was being read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from model.boundary.errors import MoonflowError, Unavailable

T = TypeVar("T")
P = ParamSpec("P")

LONGEST = 1_000  # characters of a line (ours): foreign text in it may have any length
MAX_BROKEN = 0.05  # share of a mixture's, suite's or source's samples that may be unusable (ours); more is an error
SHOWN = 3  # names in a line that stands for many files (ours: enough to see what kind they are)


@dataclass(frozen=True)
class Problem:
    """A sample, or a shard, that cannot be used: where it is, what is wrong, and what to do. It counts as broken."""

    line: str


@dataclass(frozen=True)
class Note:
    """A file that was not used. No sample is known to be lost by it, so it does not count as broken."""

    line: str


def one_line(text: str) -> str:
    r"""The text on one line that any terminal and file accepts: line ends and other control characters are escaped.

    A byte of a file name that is not UTF-8 (which Python keeps as a lone surrogate) becomes ``\xe9``.
    """
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return text if text.isprintable() else "".join(map(_escaped, text))


def some(names: Sequence[str]) -> str:
    """``a, b, c and 4 more``."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def attempt(where: str, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T | Problem:
    """What ``work(*arguments, **named)`` makes of one record, or what is wrong with the record.

    Args:
        where: names the record, for an exception that does not.

    Raises:
        MemoryError: the machine lacks memory, which is not the record's fault.
        Unavailable: a service is away or a disk is full, which is not the record's fault either.
    """
    try:
        return work(*arguments, **named)
    except Unavailable:
        raise
    except MoonflowError as error:
        return Problem(one_line(str(error)))
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:  # libraries in Rust raise panics that are no Exception
        return Problem(one_line(f"{where}: {type(error).__name__}: {error}; fix it or take it out"))


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character if character.isprintable() else character.encode("unicode_escape").decode()
