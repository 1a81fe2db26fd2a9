"""The world as its tools see it: a search over all pages, pages in windows, files (source: ours).

The search is BM25 over an SQLite FTS5 index in memory. Every text that a tool returns is made here, so that a reference
trajectory and an episode observe the same.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any

from model.boundary.errors import MoonflowError
from model.data.families.world.facts import Facts, facts
from model.data.families.world.pages import Library, Page, build

NO_RESULT = "no result"
WEIGHTS = (10.0, 2.0, 1.0)  # of title, lead and text in a page's rank (ours)
MAX_WORDS = 12  # of a query; the rest is not looked for
COMMON_SHARE = 0.15  # a word on more of all pages is looked for only if the query has no rarer one (ours)
MIN_WINDOW = 120  # characters; the longest line that must not be cut has fewer


@dataclass(frozen=True)
class View:
    """How much a tool shows at once: pages of a search, and characters of a page's window."""

    results: int = 4
    window: int = 240

    @classmethod
    def of(cls, environment: Mapping[str, Any], where: str) -> View:
        """The view of a task, whose ``environment["world"]`` may give either number.

        Raises:
            MoonflowError: a name or a number is wrong; the message begins with ``where``.
        """
        given = environment.get("world", {})
        if not isinstance(given, Mapping) or not set(given) <= {"results", "window"}:
            raise MoonflowError(f"{where}: environment.world takes results and window, not {str(given)[:100]}")
        view = cls(**given)
        for name, least in (("results", 1), ("window", MIN_WINDOW)):
            value = getattr(view, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise MoonflowError(f"{where}: environment.world.{name} must be an integer of at least {least}")
        return view


class World:
    """All pages and files, and what is true."""

    def __init__(self, known: Facts) -> None:
        self.facts = known
        self._index: dict[int, sqlite3.Connection] = {}
        self._common: frozenset[str] = frozenset()
        self._lock = threading.Lock()

    @cached_property
    def library(self) -> Library:
        return build(self.facts)

    def truth(self, title: str, attribute: str) -> str:
        """The value of an attribute; KeyError if the thing lacks it."""
        return self.facts.things[title].attributes[attribute]

    def number(self, title: str) -> int:
        """The number of the newest page of a title; KeyError if there is none."""
        return self.library.newest[title]

    def search(self, query: str, view: View) -> str:
        """``4121:Peru|2025-06|country:capital,area`` for the pages that fit best, the best first."""
        words = tuple(re.findall(r"\w+", query.lower())[:MAX_WORDS])
        if not words:
            return "error: the query has no word"
        found = ((number, self.library.pages[number]) for number in self._ranked(words, view.results))
        return "\n".join(f"{number}:{page.title}|{page.date}|{page.lead}" for number, page in found) or NO_RESULT

    def open_page(self, page: str, window: str, view: View) -> str:
        """``4121:Peru|2025-06|1/2``, which says that this is the first of two windows, and the window's lines."""
        if (found := self.library.pages.get(_number(page))) is None:
            return f"error: there is no page {page[:40]}; search tells the numbers of pages"
        cut = windows(found, view.window)
        if not 1 <= (number := _number(window)) <= len(cut):
            return f"error: page {page.strip()} has the windows 1 to {len(cut)}"
        return f"{_number(page)}:{found.title}|{found.date}|{number}/{len(cut)}\n{cut[number - 1]}"

    def file(self, name: str) -> str | None:
        """The content of a file; None if there is none of this name."""
        return self.library.files.get(name.strip())

    @lru_cache(maxsize=65_536)  # noqa: B019  (there is one world in a process)
    def _ranked(self, words: tuple[str, ...], results: int) -> list[int]:
        with self._lock:
            connection = self._connection()
            rarer = [word for word in words if word not in self._common]
            asked = " OR ".join(f'"{word}"' for word in rarer or words)
            rows = connection.execute(
                f"select rowid from pages where pages match ? order by bm25(pages, {WEIGHTS[0]}, {WEIGHTS[1]}, "
                f"{WEIGHTS[2]}), rowid limit ?",
                (asked, results),
            )
            return [number for (number,) in rows]

    def _connection(self) -> sqlite3.Connection:
        """The index of this process: SQLite forbids to use a connection that was made before a fork."""
        if os.getpid() not in self._index:
            connection = sqlite3.connect(":memory:", check_same_thread=False)
            try:
                connection.execute("create virtual table pages using fts5(title, lead, text, content='')")
            except sqlite3.OperationalError as error:
                raise MoonflowError(
                    f"the search of the world needs SQLite with FTS5, which this Python's {sqlite3.sqlite_version} "
                    f"lacks ({error}): use a Python whose sqlite3 module has it"
                ) from None
            connection.executemany(
                "insert into pages(rowid, title, lead, text) values (?, ?, ?, ?)",
                (
                    (number, page.title, page.lead, page.text if page.searched == "all" else "")
                    for number, page in self.library.pages.items()
                    if page.searched != "nothing"
                ),
            )
            connection.execute("create virtual table words using fts5vocab(pages, row)")
            often = COMMON_SHARE * len(self.library.pages)
            common = connection.execute("select term from words where doc > ?", (often,))
            self._common = frozenset(word for (word,) in common)
            self._index = {os.getpid(): connection}
        return self._index[os.getpid()]


def _number(text: str) -> int:
    """The number that a tool's argument means; -1 if it is none."""
    digits = text.strip()
    return int(digits) if len(digits) <= 9 and digits.isascii() and digits.isdecimal() else -1


def files_cell(files: Mapping[str, str]) -> str:
    """A cell of a notebook that defines ``files``, which holds what was downloaded."""
    return f"files = {dict(files)!r}"


def downloaded(name: str, content: str) -> str:
    """What a download returns. It tells no checksum: a program computes that."""
    return f"files['{name}'] has {len(content)} characters"


def _end(piece: str) -> int:
    """Where the beginning of a long line is cut: after a comma, else before a space, else at its end."""
    return piece.rfind(", ") + 1 or max(piece.rfind(" "), 0) or len(piece)


@lru_cache(maxsize=16_384)
def windows(page: Page, characters: int) -> list[str]:
    """The text of a page in windows of at most so many characters, cut between lines, or words in a long line."""
    cut: list[str] = [""]
    for line in page.text.split("\n"):
        while line:
            end = len(line) if len(line) <= characters else _end(line[:characters])
            piece, line = line[:end], line[end:].lstrip(" ")
            if cut[-1] and len(cut[-1]) + 1 + len(piece) > characters:
                cut.append("")
            cut[-1] += f"\n{piece}" if cut[-1] else piece
    return cut


@cache
def world() -> World:
    """The world of this process, built at the first call.

    Raises:
        MoonflowError: a package with facts is missing.
    """
    return World(facts())
