"""JSON as its specification has it, both ways: Python's own reads and writes NaN, Infinity and half surrogates."""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import from_json

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


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
    # Nearly always ASCII or whole characters: only what is broken pays for the repair.
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
