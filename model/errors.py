"""The one exception a user is meant to read, and the hint that a misspelt name deserves."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MoonflowError(Exception):
    """Bad input or a missing service, told in one line: what is wrong, where, and what to do.

    Entry points print the message without a traceback and exit with a non-zero status; anything else that
    escapes is a bug and keeps its traceback.
    """


class Unavailable(MoonflowError):
    """A service or a resource that all of a step's work needs is not there.

    To pass over one sample or episode would not help. Another attempt may: nothing is wrong with the input.
    """


class Transient(Unavailable):
    """A service that does not answer or fails inside: the same work may succeed a few minutes later."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"`` with the known word nearest to ``word``, "" if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f"; did you mean {near[0]}?" if near else ""
