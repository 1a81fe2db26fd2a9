"""A folder for temporary files that only this user can write to. It holds compiled kernels, which are executed, and the
runs for which no folder was given."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from model.boundary.errors import MoonflowError

OTHERS_WRITE = 0o022


def private_folder(temporary: Path) -> Path:
    """The folder ``<temporary>/moonflow-<uid>``, which only this user can write; it is made if it is missing.

    Raises:
        MoonflowError: another user owns it or can write to it, so its files may be that user's.
        OSError: it cannot be made.
    """
    folder = temporary / f"moonflow-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()  # not stat: a link may lead to another user's folder
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & OTHERS_WRITE:
        raise MoonflowError(
            f"{folder} is not a folder that only this user (uid {os.getuid()}) can write: delete it, or set TMPDIR to "
            "a folder of your own"
        )
    folder.chmod(0o700)  # it may have been made with a default mode
    return folder
