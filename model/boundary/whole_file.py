"""Files that are written whole or not at all: under another name in the same folder, then renamed (source: ours).

A writer that dies leaves its unfinished file, a part. Each writer holds a lock on its part until it is renamed, so that
``sweep`` recognises the parts of dead writers, also on a disk that several machines share. Where the file system has no
locks (``flock``), nothing is swept.
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

PART = ".part-"
"""Marks the name of a file that is still being written. No object in a store has it in its name."""
# The names of parts: as given below, and as earlier versions gave them, with process, thread and number. No other file
# matches, since the folder may hold a user's files.
_PARTS = re.compile(rf"{re.escape(PART)}[0-9a-f]{{16}}|.+{re.escape(PART)}\d+-\d+-\d+", re.DOTALL)
_TRIES = 100  # since another process may remove the empty folder after we have made it and before we use it


def write_whole(target: Path, data: bytes, mode: int = 0o666) -> None:
    """Write ``target``, whole or not at all: what was there before stays until ``data`` is written.

    ``mode``: the new file's permissions, before the umask applies. Raises OSError, for a full disk among others.
    """
    with part_file(target, mode) as (stream, part):
        stream.write(data)
        stream.flush()
        part.replace(target)


@contextmanager
def part_file(target: Path, mode: int = 0o666) -> Iterator[tuple[BinaryIO, Path]]:
    """An empty file in ``target``'s folder, open for writing, and its path; removed at the end unless it was renamed.

    The folder is made if it is missing. Raises OSError, for a full disk among others.
    """
    stream, path = _locked(target, mode)
    try:
        with stream:
            yield stream, path
    finally:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> list[Path]:
    """Remove the parts of dead writers below ``folder`` and return their paths. What cannot be removed stays."""
    removed = []
    for root, _, names in os.walk(folder):
        for name in names:
            if _PARTS.fullmatch(name) and _remove_dead(path := Path(root, name)):
                removed.append(path)
    return removed


def _locked(target: Path, mode: int) -> tuple[BinaryIO, Path]:
    for attempt in range(1, _TRIES + 1):
        path = target.with_name(f"{PART}{secrets.token_hex(8)}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)  # this, too, fails if the folder is removed now
            stream = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb")
        except (FileNotFoundError, FileExistsError):
            if attempt == _TRIES:
                raise
            continue
        with suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        if os.fstat(stream.fileno()).st_nlink:
            return stream, path
        stream.close()  # swept between open and lock, as a dead writer's
    raise OSError(f"{target.parent} is swept or removed each time that a file is made in it")


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
