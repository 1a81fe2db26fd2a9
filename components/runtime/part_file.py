"""Files that appear whole: written under another name beside their own, then renamed (source: ours).

A writer that dies leaves its part. Each writer holds a lock on its part until it is renamed, so that ``sweep`` can tell
the parts of dead writers, also on a disk that several machines share. Where the file system knows no locks
(``flock``), nothing is swept.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from components.runtime.address import PART

# As they are named below, and as earlier versions named them: with process, thread and number. No other file of a
# folder, which may be a user's own, is ever taken for one.
_PARTS = re.compile(rf"{re.escape(PART)}[0-9a-f]{{16}}|.+{re.escape(PART)}\d+-\d+-\d+", re.DOTALL)
_TRIES = 100  # against somebody who removes the emptied folder between our making it and our using it


@contextmanager
def part_file(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """An empty file beside ``target``, open for writing, and its path; it is gone at the end unless it was renamed.

    Raises OSError, a full disk's among them.
    """
    stream, path = _locked(target)
    try:
        with stream:
            yield stream, path
    finally:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> list[Path]:
    """Remove what dead writers left below ``folder``; returns it. What cannot be removed stays."""
    removed = []
    for root, _, names in os.walk(folder):
        for name in names:
            if _PARTS.fullmatch(name) and _remove_dead(path := Path(root, name)):
                removed.append(path)
    return removed


def _locked(target: Path) -> tuple[BinaryIO, Path]:
    for attempt in range(1, _TRIES + 1):
        path = target.with_name(f"{PART}{secrets.token_hex(8)}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)  # it, too, can find a folder gone that it has just seen
            stream = path.open("xb")
        except (FileNotFoundError, FileExistsError):
            if attempt == _TRIES:
                raise
            continue
        with suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        if os.fstat(stream.fileno()).st_nlink:
            return stream, path
        stream.close()  # a sweep came between open and lock, and took it for a dead writer's
    raise OSError(f"{target.parent} is swept all the time")


def _remove_dead(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)  # a lock over NFS needs a file open for writing
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
