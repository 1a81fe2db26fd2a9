"""Text that somebody else wrote - a program, a policy, a caller, a file - made safe to go on with (ours).

Python's strings can hold what no encoding can: half a character, as ``print(chr(0xd83d))`` and the JSON escape
``\\ud83d`` make it. JSON as Python reads it can hold more than JSON: NaN, a key twice, numbers past every float.
"""

from __future__ import annotations

import json
import math
from typing import Any


def well_formed(text: str) -> str:
    """``text`` with U+FFFD for each half of a character (a lone surrogate), as decoders put it; pairs become one
    character. Any other text comes back as it is."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def read_json(text: str) -> Any:
    """The value of ``text``, whose strings are well formed and whose numbers are finite.

    Raises:
        ValueError: one line that says what is wrong: no JSON, a key twice, a number that no float holds, nested too
            deeply.
    """
    try:
        value = json.loads(well_formed(text), object_pairs_hook=_object)
        if "\\u" in text:  # escapes can spell half a character; written out, they are found as in any text
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
            raise ValueError(f"the key {key[:80]!r} stands there twice")
        if not _finite(value):
            raise ValueError(f"{key[:80]} is not a finite number")
        found[key] = value
    return found


def _finite(value: Any) -> bool:
    """Whether a number, or every one in a list, is finite; what is in objects was seen when they were read."""
    if isinstance(value, list):
        return all(_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)
