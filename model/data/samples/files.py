"""Users' files: how they are opened, and which of them belong to the operating system."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading, without waiting, as opening a FIFO would.

    Raises:
        OSError: it cannot be opened, or is no regular file; ``strerror`` says why.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(None, "it is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def is_system_file(name: str) -> bool:
    """Whether a file belongs to the operating system, judged by its name below a folder or in an archive.

    These are hidden files, and what macOS adds to folders and archives (``._a.png``, ``.DS_Store``, ``__MACOSX``).
    """
    if not name.startswith((".", "__")) and "/." not in name and "/__" not in name:
        return False  # quickly: shards have many members
    parts = [part for part in name.split("/") if part not in (".", "..")]
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)
