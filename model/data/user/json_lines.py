"""A user's files of conversations, one JSON object a line, in parts that several processes read (source: ours)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol

from model.boundary.errors import MoonflowError
from model.data.samples.files import open_file
from model.data.samples.problems import Note, Problem, attempt, one_line, some
from model.data.samples.sample import Sample
from model.data.samples.tar_members import COMPRESSED
from model.data.user.conversation import read_line
from model.data.user.listing import ListedFile, read_whole

LINES = ".jsonl"
PART_BYTES = 16 * 2**20  # of lines in one part; the samples of a part are in memory at once
LARGEST_LINE = 32 * 2**20  # bytes (ours): a longer line is not read, whatever is in it
MOST_BAD = 10_000  # lines of a part that are named (ours); more would fill the memory, and the file is none of ours


class UserFiles(Protocol):
    """The files of one source, by their paths below its folder."""

    def place(self, name: str) -> str:
        """The file's name in messages."""
        ...

    def open(self, name: str) -> BinaryIO:
        """MoonflowError if the file cannot be read."""
        ...

    def image(self, path: str, shown_in: str) -> bytes:
        """The content of an image by its path, which is relative to the file ``shown_in``, or absolute.

        Raises:
            MoonflowError: the path leads out of the folder, or the file cannot be read.
        """
        ...


@dataclass(frozen=True)
class LocalFiles:
    """Files below a local folder. A link counts as what it leads to."""

    folder: Path

    def place(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def open(self, name: str) -> BinaryIO:
        try:
            return open_file(self.folder / name)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise MoonflowError(f"{self.place(name)} cannot be read ({reason}): change its permissions") from None

    def image(self, path: str, shown_in: str) -> bytes:
        told = f"image {path[:200]!r}"
        if not path or "\0" in path:
            raise MoonflowError(f"{told} is no path: name an image file")
        root = os.path.realpath(self.folder)
        found = os.path.realpath(os.path.join(root, os.path.dirname(shown_in), path))
        if not found.startswith(root.rstrip("/") + "/"):
            raise MoonflowError(f"{told} is outside of the folder {self.folder}: put the image into it")
        return read_whole(Path(found), told)


@dataclass(frozen=True)
class Lines:
    """Consecutive lines of one file.

    Attributes:
        file: the file's number among those of the source; with the number of a line it makes the key of a sample.
        start, size: the part's bytes; a size of None reaches to the end of the file.
        first: the number of its first line, from 1.
    """

    files: UserFiles
    name: str
    file: int
    start: int = 0
    size: int | None = None
    first: int = 1

    @property
    def where(self) -> str:
        return self.files.place(self.name)

    def place(self, sample: Sample) -> str:
        """File and line of a sample of this part."""
        return f"{self.where}, line {int(sample.key.rpartition('-')[2])}"

    def samples(self) -> Iterator[Sample | Problem | Note]:
        stream = attempt(self.where, self.files.open, self.name)
        if isinstance(stream, Problem):
            yield stream
            return
        unread: set[str] = set()
        bad = 0
        with stream:
            for number, line in _lines(stream, self.start, self.size, self.first):
                where = f"{self.where}, line {number}"
                if line is None:
                    told = f"{where} has more than {LARGEST_LINE >> 20} MiB: put its images into files, or shorten it"
                    found: Sample | Problem = Problem(one_line(told))
                else:
                    found = attempt(where, self._sample, line, where, number, unread)
                yield found
                bad += isinstance(found, Problem)
                if bad == MOST_BAD:
                    told = f"{where}: {MOST_BAD:,} lines up to here cannot be used; those that follow"
                    yield Problem(one_line(f"{told} are not read: is this a file of conversations?"))
                    break
        if unread:
            names = some(sorted(unread))
            yield Note(one_line(f"{self.where}: of a line, only messages and tools are read, not {names}"))

    def _sample(self, line: bytes, where: str, number: int, unread: set[str]) -> Sample:
        key = f"{self.file:05d}-{number:08d}"
        sample, others = read_line(line, where, key, partial(self.files.image, shown_in=self.name))
        if len(unread) < MOST_BAD:
            unread |= others
        return sample


def _lines(stream: BinaryIO, start: int, size: int | None, number: int) -> Iterator[tuple[int, bytes | None]]:
    """(number, line) of the lines that are not empty; None for one of more than LARGEST_LINE bytes."""
    stream.seek(start)
    read = 0
    while (size is None or read < size) and (line := stream.readline(LARGEST_LINE + 1)):
        read += len(line)
        if len(line) > LARGEST_LINE:
            while line and not line.endswith(b"\n"):
                line = stream.readline(PART_BYTES)
                read += len(line)
            yield number, None
        elif line.strip():
            yield number, line
        number += 1


def line_parts(files: LocalFiles, entries: Sequence[ListedFile]) -> Iterator[Lines | Problem]:
    """The parts of the .jsonl files among ``entries``, which are read once to count their lines."""
    for number, entry in enumerate(entries):
        place = files.place(entry.name)
        if entry.fault:
            yield entry.problem(str(files.folder))
            continue
        stream = attempt(place, files.open, entry.name)
        if isinstance(stream, Problem):
            yield stream
            continue
        with stream:
            head = stream.read(8)
            if packed := next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), None):
                yield Problem(one_line(f"{place} is compressed ({packed}): decompress it"))
                continue
            cuts = [*_cuts(stream)]
        for (start, first), (end, _) in zip(cuts, cuts[1:], strict=False):
            yield Lines(files, entry.name, number, start, end - start, first)


def _cuts(stream: BinaryIO) -> Iterator[tuple[int, int]]:
    """(byte, number of the line that begins there) every PART_BYTES or so, and last the end of the file."""
    position, end = 0, stream.seek(0, os.SEEK_END)
    number = 1
    stream.seek(0)
    yield 0, 1
    while block := stream.read(PART_BYTES):
        last = block.rfind(b"\n") + 1
        number += block.count(b"\n")
        if last and position + last < end:
            yield position + last, number
        position += len(block)
    yield end, number
