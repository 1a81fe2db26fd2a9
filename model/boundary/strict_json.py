"""Reads and writes JSON as its specification has it; Python's json also takes NaN, Infinity and half surrogates.

This is for callers and users, who get an error; what a policy writes is read by ``model.boundary.untrusted_text``.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import from_json

from model.boundary.untrusted_text import well_formed

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def most_values(text: str | bytes) -> int:
    """The most values that a JSON text can hold: all but the first of a list or object follow a comma."""
    if isinstance(text, bytes):
        return sum(text.count(mark) for mark in (b",", b"[", b"{"))
    return sum(text.count(mark) for mark in ",[{")


def read(text: str | bytes) -> Any:
    """Parse what ``write`` could have written.

    Raises:
        ValueError: in one line, what is wrong: it is not JSON, is nested more than 200 levels deep, or holds a number
            that a float cannot hold (1e999) or an int of more than 4,300 digits.
    """
    value = from_json(text, allow_inf_nan=False)
    write(value)
    return value


def write(value: Any) -> str:
    """``value`` as JSON. A half surrogate, which UTF-8 cannot hold, becomes U+FFFD.

    Raises:
        ValueError: it holds NaN, an infinity or an int of more than 4,300 digits, or is nested too deep.
    """
    try:
        text = _encode(value)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    return well_formed(text)
