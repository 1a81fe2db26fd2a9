"""Errors that a user is meant to read, and the hint for a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MoonflowError(Exception):
    """Bad input or a missing service, described in one line: what is wrong, where, and what to do.

    Several things that are wrong in the same way have a line each.

    Entry points print the message without a traceback and exit with a non-zero status; anything else that
    escapes is a bug and keeps its traceback.
    """


class Unavailable(MoonflowError):
    """A service or a resource that the whole step needs is missing.

    Skipping one sample or episode does not help. Another attempt may help: nothing is wrong with the input.
    """


class Transient(Unavailable):
    """A service does not answer, or fails internally: the same work may succeed a few minutes later."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"`` with the known word that is most like ``word``; "" if none is like it."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f"; did you mean {near[0]}?" if near else ""
