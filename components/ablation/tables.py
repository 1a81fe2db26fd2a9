"""A table of an ablation, for its page, for Markdown and for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Texts; each row has as many cells as the head, and its first cell names it."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> Iterator[str]:
        """The lines without the title; cells are Markdown."""
        for cells in (self.head, ["---"] * len(self.head), *self.rows):
            yield f"| {' | '.join(cells)} |"


def document(opening: str, tables: Iterable[Table], sentences: Iterable[str]) -> str:
    """Markdown: the opening, each table below its title, then the sentences as a list."""
    lines = [opening, ""]
    for table in tables:
        lines += [f"**{table.title}**", "", *table.markdown(), ""]
    lines += [f"- {sentence}" for sentence in sentences]
    return "\n".join(lines) + "\n"
