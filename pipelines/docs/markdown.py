"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a heading row; cells are Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def cell(text: str | None) -> str:
    """Plain text as one line of Markdown that stays in its cell."""
    return " ".join((text or "").split()).replace("|", "/").replace("<", "\\<")
