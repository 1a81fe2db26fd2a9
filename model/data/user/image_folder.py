"""A user's folder of images with texts: ``cat.png`` and ``cat.txt``, or ``metadata.jsonl`` (source: ours).

``metadata.jsonl`` has a line per image, with ``file_name`` and ``text``, as Hugging Face's imagefolder has it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from model.boundary.errors import MoonflowError
from model.data.samples.files import open_file
from model.data.samples.problems import Note, Problem, attempt, one_line
from model.data.samples.record import first_faults, read_json
from model.data.samples.sample import Sample
from model.data.user.listing import ListedFile, read_whole, unused

# The usual extensions of ``model.codec.remote.image_files.IMAGE_FORMATS``; the first bytes tell what a file really is.
IMAGES = {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".avif"}
TEXT = ".txt"
METADATA = "metadata.jsonl"
SHOW = "write what the image shows"


@dataclass(frozen=True)
class Pair:
    """An image below the folder, and its text."""

    name: str
    text: str


@dataclass(frozen=True)
class Pairs:
    """Images of a folder with their texts; a ``Part`` of ``model.data.user.user_data``.

    Attributes:
        found: a pair, or in place of one a problem or a note.
    """

    folder: Path
    found: tuple[Pair | Problem | Note, ...]

    @property
    def where(self) -> str:
        return str(self.folder)

    def samples(self) -> Iterator[Sample | Problem | Note]:
        for one in self.found:
            yield attempt(f"{self.folder}/{one.name}", self._sample, one) if isinstance(one, Pair) else one

    def _sample(self, pair: Pair) -> Sample:
        content = read_whole(self.folder / pair.name)
        extension = os.path.splitext(pair.name)[1].lower()
        medium = extension[1:] if extension in IMAGES else "image"
        segments: list[dict[str, Any]] = [
            {"type": "image", "media": medium},
            {"type": "text", "text": pair.text, "loss": True},
        ]
        media = {medium: content}
        return Sample(pair.name, "pairs", "knowledge", "image", pair.name, segments=segments, media=media)


def pairs(folder: Path, entries: Sequence[ListedFile]) -> Iterator[Pair | Problem | Note]:
    """The images of a folder with their texts, and notes on its other files.

    Raises:
        MoonflowError: the folder's metadata.jsonl cannot be read.
    """
    where, used = str(folder), set[str]()
    seen = [entry for entry in entries if not entry.is_system_file]
    listed = next((entry for entry in seen if entry.name == METADATA), None)
    yield from _listed(folder, listed, used) if listed else _paired_by_name(folder, seen, used)

    # The files that belong to no pair.
    others = []
    for entry in seen:
        if entry.name in used:
            continue
        if os.path.basename(entry.name).lower().startswith("metadata."):
            yield Note(one_line(f"{where}/{entry.name} is not read: {_instead_of(entry)}"))
        else:
            others.append(entry)
    neither = (
        f"not an image ({', '.join(sorted(IMAGES))}) and not the text of one; convert other images to one of these"
    )
    yield from unused(where, others, f"not listed in {METADATA}" if listed else neither)
    yield from unused(where, [entry for entry in entries if entry.is_system_file], "hidden, or a file of the system")


def _instead_of(entry: ListedFile) -> str:
    folder, name = os.path.split(entry.name)
    if name == METADATA:
        return f"give its folder {folder} as another source, or list its files in {METADATA} of the whole folder"
    return f'write its rows into {METADATA} of the whole folder, a line {{"file_name": ..., "text": ...}} for each'


def _paired_by_name(folder: Path, entries: Sequence[ListedFile], used: set[str]) -> Iterator[Pair | Problem]:
    """Images with the texts of the same stem; adds the names of both to ``used``."""
    where = str(folder)
    texts: dict[str, ListedFile] = {}
    for entry in entries:
        if entry.extension == TEXT:
            texts.setdefault(entry.stem, entry)
    first: dict[str, str] = {}  # stem -> the image that has the text of this stem
    for entry in entries:
        if entry.extension not in IMAGES and not entry.hides:
            continue
        used.add(entry.name)
        text = texts.get(entry.stem)
        if text is not None:
            used.add(text.name)
        if entry.fault:
            yield entry.problem(where)
            continue
        text_name = f"{os.path.basename(entry.stem)}{TEXT}"
        if text is None:
            fault = f"there is no {text_name} next to it: {SHOW}"
        elif (other := first.setdefault(entry.stem, entry.name)) != entry.name:
            fault = f"{text_name} is the text of {os.path.basename(other)} already: rename one and write its own text"
        elif text.fault:
            fault = f"{text_name} {text.fault}"
        else:
            found = attempt(f"{folder}/{text.name}", _text, folder / text.name)
            if isinstance(found, Problem):
                yield found
                continue
            if found:
                yield Pair(entry.name, found)
                continue
            fault = f"{text_name} is empty: {SHOW}"
        yield Problem(one_line(f"{folder}/{entry.name}: {fault}"))


class Row(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]
    file_name: str
    text: str


_ROW = TypeAdapter(Row)


def _listed(folder: Path, metadata: ListedFile, used: set[str]) -> Iterator[Pair | Problem]:
    """The pairs of metadata.jsonl; adds its name and those of the listed files to ``used``."""
    if metadata.fault:
        raise MoonflowError(f"{folder}/{METADATA} {metadata.fault}")
    used.add(METADATA)
    root, lines = os.path.realpath(folder), dict[tuple[str, str], int]()
    try:
        with open_file(folder / METADATA) as stream:
            for number, line in enumerate(stream, 1):  # of bytes: a line ends at \n and nowhere else
                if line.strip():
                    where = f"{folder}/{METADATA}, line {number}"
                    yield attempt(where, _pair, line, where, root, lines, number, used)
    except OSError as error:
        raise MoonflowError(f"{folder}/{METADATA} cannot be read ({error.strerror}): change its permissions") from None


def _pair(line: bytes, where: str, root: str, lines: dict[tuple[str, str], int], number: int, used: set[str]) -> Pair:
    """The pair of one line; ``lines`` maps each earlier pair to its line."""
    row = read_json(line, where)
    try:
        checked = _ROW.validate_python(row)
    except ValidationError as error:
        raise MoonflowError(f"{where}: {first_faults(error)}") from None
    name = os.path.relpath(os.path.join(root, checked["file_name"]), root)
    if not os.path.realpath(os.path.join(root, name)).startswith(root.rstrip("/") + "/"):
        raise MoonflowError(f"{where} names a file outside the folder: put the file into it")
    used.add(name)
    text = checked["text"].strip()
    if not text:
        raise MoonflowError(f"{where} has an empty text: {SHOW}")
    if (before := lines.setdefault((name, text), number)) != number:
        raise MoonflowError(f"{where} is the same as line {before}: take one out")
    return Pair(name, text)


def _text(path: Path) -> str:
    try:
        text = read_whole(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MoonflowError(f"{path} cannot be read ({error}): save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()
