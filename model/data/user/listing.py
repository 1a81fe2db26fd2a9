"""Which files are in a user's folder, listed without opening any (source: ours)."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.boundary.errors import MoonflowError
from model.data.samples.files import is_system_file, open_file
from model.data.samples.problems import Note, Problem, one_line, some

LARGEST_FILE = 256 * 2**20  # bytes of an image or a text (ours): a larger file is neither, and might fill the memory


@dataclass(frozen=True)
class ListedFile:
    """A file in a user's folder, or something that looks like one by its name.

    Attributes:
        name: its path below the folder, with slashes. Bytes that are not UTF-8 are lone surrogates, as in
            ``os.fsdecode``.
        fault: why it cannot be used, or "".
        hides: it is a folder, or a link to one, and the files in it are not listed.
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


def list_files(folder: Path, extensions: Collection[str]) -> list[ListedFile]:
    """All files below a folder, sorted. Links are followed to files within the folder, but not to folders.

    Args:
        extensions: those that are looked for. A folder with such a name is listed too, with its fault.

    Raises:
        MoonflowError: the folder cannot be read.
    """
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise MoonflowError(f"{folder} cannot be read ({error.strerror}): change its permissions") from None
    root, found, ahead = os.path.realpath(folder), list[ListedFile](), [""]
    while ahead:
        prefix = ahead.pop()
        try:
            with os.scandir(folder / prefix) as opened:
                inside = list(opened)
        except OSError as error:
            fault = f"cannot be read ({error.strerror}): change its permissions or take it out"
            found.append(ListedFile(prefix.removesuffix("/"), fault, hides=True))
            continue
        for one in inside:
            entry = _entry(one, prefix, root)
            is_folder = one.is_dir(follow_symlinks=False)
            if is_folder and not entry.hides and not entry.is_system_file:
                ahead.append(f"{entry.name}/")
            if not is_folder or entry.hides or entry.is_system_file or entry.extension in extensions:
                found.append(entry)
    return sorted(found, key=lambda entry: entry.name.split("/"))


def _entry(one: os.DirEntry[str], prefix: str, root: str) -> ListedFile:
    name = prefix + one.name
    if not _is_utf8(name):
        return ListedFile(name, "has a name that is not UTF-8: rename it", hides=one.is_dir(follow_symlinks=False))
    if one.is_file(follow_symlinks=False):
        return ListedFile(name)
    try:
        mode = one.stat().st_mode
    except OSError as error:
        return ListedFile(name, f"is a broken link ({error.strerror}): put the file in its place")
    if stat.S_ISDIR(mode) and one.is_symlink():
        return ListedFile(name, "is a link to a folder: put the folder in its place", hides=True)
    if not os.path.realpath(one.path).startswith(root.rstrip("/") + "/"):
        return ListedFile(name, "is a link out of the folder: put the file in its place")
    if stat.S_ISREG(mode):
        return ListedFile(name)
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
    return ListedFile(name, f"is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file: rename it or take it out")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def unused(where: str, entries: Sequence[ListedFile], why: str) -> Iterator[Note]:
    """One note on ``entries``, which are files that were not used; no note if there are none.

    Args:
        why: the reason, for all of them.
    """
    if entries:
        count = f"{len(entries)} files are" if len(entries) > 1 else "1 file is"
        yield Note(one_line(f"{where}: {count} not used ({some([entry.name for entry in entries])}): {why}"))


def read_whole(path: Path, told: str = "") -> bytes:
    """The content of a file of at most LARGEST_FILE bytes.

    Args:
        told: the file's name in messages; its path if left out.

    Raises:
        MoonflowError: the file is larger, or cannot be read.
    """
    told = told or str(path)
    try:
        with open_file(path) as stream:
            if os.fstat(stream.fileno()).st_size <= LARGEST_FILE:
                return stream.read()
    except OSError as error:
        raise MoonflowError(f"{told} cannot be read ({error.strerror}): fix it or take it out") from None
    raise MoonflowError(f"{told} has more than {LARGEST_FILE >> 20} MiB: give a smaller one")
