"""Where shards are read from: a protocol, and a local folder of them (source: ours)."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO, Protocol

from model.errors import MoonflowError


class BrokenShard(MoonflowError):
    """A shard that is missing or damaged for good; asking again will not help."""


class ShardSource(Protocol):
    """Shards by their names in index.json."""

    def open(self, shard: str) -> BinaryIO:
        """The shard's bytes, seekable; the caller closes it.

        Raises:
            BrokenShard: it is missing or not what was written.
            MoonflowError: it cannot be reached now.
        """
        ...

    def soon(self, shard: str) -> None:
        """The shard will be opened before long; returns at once and never raises."""
        ...


class LocalShards:
    """Shards below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, shard: str) -> BinaryIO:
        path = self.folder / shard
        try:
            return open_file(path)
        except OSError as error:
            raise BrokenShard(f"shard {path} cannot be read ({error.strerror}): run prepare_data again") from None

    def soon(self, shard: str) -> None:
        """Nothing to bring."""


def open_file(path: Path) -> BinaryIO:
    """A regular file, opened to be read; never waits, as opening a FIFO would.

    Raises:
        OSError: it cannot be opened, or is no regular file; ``strerror`` says why.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(None, "it is no regular file", str(path))
    return os.fdopen(descriptor, "rb")


def is_system_file(name: str) -> bool:
    """Whether a system keeps the file for itself, told by a name below a folder or in an archive.

    That is, hidden files, and what macOS adds to folders and archives (``._a.png``, ``.DS_Store``, ``__MACOSX``).
    """
    if not name.startswith((".", "__")) and "/." not in name and "/__" not in name:
        return False  # quickly: shards have many members
    parts = [part for part in name.split("/") if part not in (".", "..")]
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)
