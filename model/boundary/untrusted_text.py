"""Text and JSON from untrusted sources (programs, policies, callers, files), made safe to process (ours).

Python's strings can hold half a character, which no encoding can: ``print(chr(0xd83d))`` and the JSON escape
``\\ud83d`` make one. Python's JSON parser accepts more than JSON: NaN, a key twice, numbers too large for a float.
"""

from __future__ import annotations

import json
import math
from typing import Any


def well_formed(text: str) -> str:
    """``text`` with U+FFFD in place of each half of a character (a lone surrogate), as decoders do; two halves that
    belong together become one character. Any other text is returned unchanged."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def shown(text: str, most: int = 200) -> str:
    """A foreign name for a message or a terminal: printable characters in one line, at most ``most`` and "..."; others
    become "?"."""
    kept = text if len(text) <= most else f"{text[:most]}..."
    return "".join(character if character.isprintable() else "?" for character in kept)


def cut(text: str, most: int) -> str:
    """``text`` in at most about ``most`` characters, its middle left out; characters that nobody sees become U+FFFD.

    Those could change the order in which a page shows its text.
    """
    if len(text) > most:
        head = most * 2 // 3
        text = f"{text[:head]} … {text[head - most :]}"
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in well_formed(text))


def read_json(text: str) -> Any:
    """The value of a JSON text; its strings are well formed and its numbers are finite.

    Raises:
        ValueError: in one line, what is wrong: it is not JSON, has the same key twice, has a number too large for a
            float, or is nested too deeply.
    """
    try:
        value = json.loads(well_formed(text), object_pairs_hook=_object)
        if "\\u" in text:  # an escape can make half a character, which only an encoder notices
            value = json.loads(well_formed(json.dumps(value, ensure_ascii=False)), object_pairs_hook=_object)
        if not _finite(value):
            raise ValueError("it holds a number that is not finite")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:80]!r} is given twice")
        if not _finite(value):
            raise ValueError(f"{shown(key, 80)} is not a finite number")
        found[key] = value
    return found


def _finite(value: Any) -> bool:
    """Whether a number, or every number in a list, is finite. ``_object`` has checked the numbers in objects."""
    if isinstance(value, list):
        return all(_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)
