"""Which files lie in a user's folder, told without opening one (source: ours)."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.data.problems import Note, Problem, one_line, some
from model.data.source import is_system_file
from model.errors import MoonflowError


@dataclass(frozen=True)
class Entry:
    """A file, or what has the name of one.

    Attributes:
        name: below the folder, with slashes. Bytes that are no UTF-8 are lone surrogates, as in ``os.fsdecode``.
        fault: why it must not be opened, or "".
        hides: it is a folder, or a link to one, of which nothing is seen.
    """

    name: str
    fault: str = ""
    hides: bool = False

    @property
    def stem(self) -> str:
        return os.path.splitext(self.name)[0]

    @property
    def extension(self) -> str:
        """In small letters, with its dot."""
        return os.path.splitext(self.name)[1].lower()

    @property
    def is_system_file(self) -> bool:
        return is_system_file(self.name)

    def problem(self, folder: str) -> Problem:
        return Problem(one_line(f"{folder}/{self.name} {self.fault}"))


def walk(folder: Path, extensions: Collection[str]) -> list[Entry]:
    """All files below a folder, sorted. Links are followed to files within the folder, but not to folders.

    Args:
        extensions: of the files that are looked for. A folder with such a name is an entry too, with its fault.

    Raises:
        MoonflowError: the folder cannot be read.
    """
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise MoonflowError(f"{folder} cannot be read ({error.strerror}): mend its rights") from None
    root, found, ahead = os.path.realpath(folder), list[Entry](), [""]
    while ahead:
        prefix = ahead.pop()
        try:
            with os.scandir(folder / prefix) as opened:
                inside = list(opened)
        except OSError as error:
            fault = f"cannot be read ({error.strerror}): mend its rights or take it out"
            found.append(Entry(prefix.removesuffix("/"), fault, hides=True))
            continue
        for one in inside:
            entry = _entry(one, prefix, root)
            is_folder = one.is_dir(follow_symlinks=False)
            if is_folder and not entry.hides and not entry.is_system_file:
                ahead.append(f"{entry.name}/")
            if not is_folder or entry.hides or entry.is_system_file or entry.extension in extensions:
                found.append(entry)
    return sorted(found, key=lambda entry: entry.name.split("/"))


def _entry(one: os.DirEntry[str], prefix: str, root: str) -> Entry:
    name = prefix + one.name
    if not _is_utf8(name):
        return Entry(name, "has a name that is not UTF-8: rename it", hides=one.is_dir(follow_symlinks=False))
    if one.is_file(follow_symlinks=False):
        return Entry(name)
    try:
        mode = one.stat().st_mode
    except OSError as error:
        return Entry(name, f"is a link that leads nowhere ({error.strerror}): put the file in its place")
    if stat.S_ISDIR(mode) and one.is_symlink():
        return Entry(name, "is a link to a folder: put the folder in its place", hides=True)
    if not os.path.realpath(one.path).startswith(root.rstrip("/") + "/"):
        return Entry(name, "is a link out of the folder: put the file in its place")
    if stat.S_ISREG(mode):
        return Entry(name)
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
    return Entry(name, f"is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file: rename it or take it out")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def unused(where: str, entries: Sequence[Entry], why: str) -> Iterator[Note]:
    """One note on all files that were not used; none if there are none.

    Args:
        why: of the files.
    """
    if entries:
        count = f"{len(entries)} files are" if len(entries) > 1 else "1 file is"
        yield Note(one_line(f"{where}: {count} not used ({some([entry.name for entry in entries])}): {why}"))
