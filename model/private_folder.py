"""The folder of this user's among everybody's temporary files: compiled kernels that are run, runs without a folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from model.errors import MoonflowError

OTHERS_WRITE = 0o022


def private_folder(temporary: Path) -> Path:
    """``<temporary>/moonflow-<uid>`` for this user alone, made if it is missing.

    Raises:
        MoonflowError: it is somebody else's or others can write into it, so that what lies there may be theirs.
        OSError: it cannot be made.
    """
    folder = temporary / f"moonflow-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()  # a link may lead into somebody else's folder
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & OTHERS_WRITE:
        raise MoonflowError(
            f"{folder} is not a folder that only this user (uid {os.getuid()}) can write: delete it, or set TMPDIR to "
            "a folder of your own"
        )
    folder.chmod(0o700)  # one made with a default mode
    return folder
