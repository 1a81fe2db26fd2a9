"""Recorded figures: one readable JSON file each, compared within what another kind of CPU may make of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WIDTH = 118  # of a line in a file
DIGITS = 6  # that are recorded, significant ones


def differences(found: Any, recorded: Any, rel: float, near_zero: float, where: str = "") -> Iterator[str]:
    """One line for each value of two nested JSON values that differs.

    Numbers with a fraction may differ by the share ``rel``, or by ``near_zero``; all else must be equal.
    """
    if isinstance(found, dict) and isinstance(recorded, dict):
        for name in sorted({*found, *recorded}, key=str):
            if name in found and name in recorded:
                yield from differences(found[name], recorded[name], rel, near_zero, f"{where}/{name}")
            else:
                yield f"{where}/{name}: " + ("is new" if name in found else "is gone")
    elif isinstance(found, list) and isinstance(recorded, list) and len(found) == len(recorded):
        for number, pair in enumerate(zip(found, recorded, strict=True)):
            yield from differences(*pair, rel, near_zero, f"{where}/{number}")
    elif isinstance(found, float) and isinstance(recorded, float | int):
        if not math.isclose(found, recorded, rel_tol=rel, abs_tol=near_zero):
            yield f"{where}: {found:.{DIGITS}g} instead of {recorded:.{DIGITS}g}"
    elif found != recorded:
        yield f"{where}: {found!r} instead of {recorded!r}"


def write(path: Path, figures: Any) -> None:
    path.write_text("\n".join(_lines(figures)) + "\n")


def _lines(value: Any, indent: str = "") -> Iterator[str]:
    """The lines of ``value`` as JSON: what holds nothing nested is packed into as few as it fits."""
    if not isinstance(value, dict | list):
        yield indent + json.dumps(float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value)
        return
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    items = value.items() if isinstance(value, dict) else [(None, each) for each in value]
    inner = indent + " "
    parts = [_named(name, _lines(each, inner)) for name, each in items]
    if any(len(part) > 1 for part in parts):
        body = [line for part in parts[:-1] for line in (*part[:-1], part[-1] + ",")] + parts[-1]
    else:
        body = _packed([line.strip() for (line,) in parts], inner)
    if len(body) <= 1 and sum(map(len, body)) + 2 <= WIDTH:
        yield indent + opening + "".join(body).strip() + closing
    else:
        yield from (indent + opening, *body, indent + closing)


def _named(name: str | None, lines: Iterator[str]) -> list[str]:
    first, *rest = lines
    indent = first[: len(first) - len(first.lstrip())]
    return [first if name is None else f"{indent}{json.dumps(name)}: {first.lstrip()}", *rest]


def _packed(items: list[str], indent: str) -> list[str]:
    lines: list[str] = []
    for number, item in enumerate(items):
        text = item + ("," if number < len(items) - 1 else "")
        if lines and len(lines[-1]) + 1 + len(text) <= WIDTH:
            lines[-1] += f" {text}"
        else:
            lines.append(indent + text)
    return lines
