"""Prose (docstrings, language reference) and code from CPython's standard library (PSF licence).

``stdlib_text`` and ``stdlib_code`` are short pieces; ``prose_window`` and ``code_window`` are as long as a row of 256
tokens allows, cut out anywhere, which is what bits per byte of whole modules are measured with.

Held out: whole modules and whole topics of the language reference. The files are those of the running interpreter,
so samples are the same wherever the Python patch version is the same.
"""

from __future__ import annotations

import inspect
import os
import re
import sysconfig
import textwrap
from functools import cache, lru_cache, partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Literal

import numpy as np

from model.boundary.errors import MoonflowError
from model.data.families.family import Family, in_split
from model.data.samples.sample import Sample, Split

SKIPPED_FOLDERS = {
    "test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__", "ensurepip", "pydoc_data", "encodings",
}  # fmt: skip
MIN_CHARACTERS, MAX_CHARACTERS = 60, 320  # of one document, about 25 to 130 tokens (ours)
WINDOW_CHARACTERS = 440  # of one window, about 200 tokens (ours)
DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)
TOPIC = "topics/"


@cache
def library_folder() -> Path:
    """Where the running interpreter has its standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


@cache
def _modules(split: Split) -> tuple[list[str], np.ndarray]:
    """Relative paths of ``split``'s modules, and the cumulative share of each, by size."""
    folder = library_folder()
    sizes: dict[str, int] = {}
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - SKIPPED_FOLDERS)  # site-packages can hold 50,000 files: never entered
        for name in files:
            if name.endswith(".py"):
                path = Path(root, name)
                sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    if not sizes:
        raise MoonflowError(f"no standard library sources under {folder}: use a Python that ships its .py files")
    names = sorted(name for name in sizes if sizes[name] > 1000 and in_split(name, split))
    # Capped, so that a few huge tables do not crowd out the rest.
    weights = np.cumsum([min(sizes[name], 50_000) for name in names])
    return names, weights / weights[-1]


@cache
def _topics(split: Split) -> list[str]:
    return sorted(TOPIC + name for name in topics if in_split(TOPIC + name, split))


def code_sources(split: Split) -> list[str]:
    return _modules(split)[0]


def stdlib_sources(split: Split) -> list[str]:
    return code_sources(split) + _topics(split)


@lru_cache(maxsize=1024)
def _source_text(name: str) -> str:
    return (library_folder() / name).read_text(encoding="utf-8", errors="replace")


@lru_cache(maxsize=1024)
def paragraphs_of(name: str) -> list[str]:
    """A module's docstrings, or a topic of the reference, cut at blank lines."""
    if name.startswith(TOPIC):
        texts = [topics[name.removeprefix(TOPIC)]]
    else:
        texts = [inspect.cleandoc(match) for match in DOCSTRING.findall(_source_text(name))]
    paragraphs = [paragraph.strip() for text in texts for paragraph in re.split(r"\n\s*\n", text)]
    return [paragraph for paragraph in paragraphs if len(paragraph) >= MIN_CHARACTERS]


@lru_cache(maxsize=1024)
def code_lines_of(name: str) -> list[str]:
    """Lines of code without docstrings, comment lines and blank lines."""
    lines = DOCSTRING.sub('""', _source_text(name)).split("\n")
    return [line.rstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _draw_module(rng: np.random.Generator, split: Split) -> str:
    names, shares = _modules(split)
    return names[int(np.searchsorted(shares, rng.random(), side="right"))]


def _cut(text: str) -> str:
    """At most ``MAX_CHARACTERS``, ending where a line or a word ends."""
    if len(text) <= MAX_CHARACTERS:
        return text
    head = text[: MAX_CHARACTERS + 1]
    end = max(head.rfind("\n"), head.rfind(" "))
    return head[: end if end > MIN_CHARACTERS else MAX_CHARACTERS].rstrip()


def whole(source: str, kind: Literal["code", "prose"]) -> str:
    """All code lines, or all paragraphs, of a source; empty if it has none."""
    return "\n".join(code_lines_of(source)) if kind == "code" else "\n\n".join(paragraphs_of(source))


def _document(family: str, source: str, text: str, index: int) -> Sample:
    return Sample(
        key=f"{family}-{index:08d}", family=family, ability="coding" if "code" in family else "knowledge",
        modality="text", source=source, segments=[{"type": "text", "text": text, "loss": True}],
    )  # fmt: skip


def stdlib_text(rng: np.random.Generator, split: Split, index: int) -> Sample:
    """A paragraph or two of documentation."""
    paragraphs: list[str] = []
    while not paragraphs:  # some modules have no docstring long enough
        names = _topics(split)
        source = names[int(rng.integers(len(names)))] if rng.random() < 0.3 else _draw_module(rng, split)
        paragraphs = paragraphs_of(source)
    start = int(rng.integers(len(paragraphs)))
    return _document("stdlib_text", source, _cut("\n\n".join(paragraphs[start : start + 3])), index)


def stdlib_code(rng: np.random.Generator, split: Split, index: int) -> Sample:
    """Some consecutive lines of code, dedented."""
    lines: list[str] = []
    while len(lines) < 8:
        source = _draw_module(rng, split)
        lines = code_lines_of(source)
    start = int(rng.integers(len(lines) - 7))
    text = textwrap.dedent("\n".join(lines[start : start + 14]))
    return _document("stdlib_code", source, _cut(text), index)


@cache
def _windowed(kind: Literal["code", "prose"], split: Split) -> tuple[list[str], np.ndarray]:
    """Sources with at least a window's text, and the cumulative share of each, by length."""
    names = code_sources(split) if kind == "code" else stdlib_sources(split)
    lengths = {name: len(whole(name, kind)) for name in names}
    kept = [name for name in names if lengths[name] >= WINDOW_CHARACTERS]
    shares = np.cumsum([lengths[name] for name in kept])
    return kept, shares / shares[-1]


def _window(kind: Literal["code", "prose"], rng: np.random.Generator, split: Split, index: int) -> Sample:
    """Some hundred consecutive characters of a source, from the beginning of a line on."""
    names, shares = _windowed(kind, split)
    source = names[int(np.searchsorted(shares, rng.random(), side="right"))]
    text = whole(source, kind)
    place = int(rng.integers(-WINDOW_CHARACTERS // 2, len(text) - WINDOW_CHARACTERS // 2))
    start = text.rfind("\n", 0, max(0, place)) + 1
    return _document(f"{kind}_window", source, text[start : start + WINDOW_CHARACTERS].rstrip("\n"), index)


@cache
def identifiers(split: Split) -> list[str]:
    """Words of 3 to 12 letters from the heads of all modules, split by the word itself: no word is in both splits."""
    words: set[str] = set()
    for name in _modules("train")[0] + _modules("eval")[0]:
        words.update(re.findall(r"\b[A-Za-z][a-z_]{2,11}\b", _source_text(name)[:20_000]))
    return sorted(word for word in words if in_split(f"word/{word.lower()}", split))


STDLIB_TEXT = Family("stdlib_text", "knowledge", "text", "document", stdlib_text, stdlib_sources)
STDLIB_CODE = Family("stdlib_code", "coding", "text", "document", stdlib_code, stdlib_sources)
CODE_WINDOW = Family("code_window", "coding", "text", "document", partial(_window, "code"), code_sources)
PROSE_WINDOW = Family("prose_window", "knowledge", "text", "document", partial(_window, "prose"), stdlib_sources)
