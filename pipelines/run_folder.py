"""The folder of a local run: which path can be one, how a command line names it, and its short name for sockets."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.errors import MoonflowError

SOCKET_ROOM = 40
"""Bytes that programs put behind TMPDIR to name a socket, as multiprocessing does: /pymp-xxxxxxxx/listener-xxxxxxxx."""
LONGEST_SOCKET = 107
"""Bytes of a Unix socket's path (Linux: sun_path has 108, the last one is zero)."""


def run_folder(path: Path) -> Path:
    """The absolute path of a run's folder, there or not; nothing is written.

    Raises:
        MoonflowError: its name would break logs and printed commands, a file is in its place, or it lies in another
            run's folder, which that run clears.
    """
    try:
        folder = path.resolve()
        taken = [place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()]
    except (OSError, RuntimeError) as error:  # too long, not to be looked into, a circle of links
        reason = error.strerror if isinstance(error, OSError) else "it is a circle of links"
        raise MoonflowError(f"run folder {str(path)[:200]!r}: {reason}; give another one") from None
    if not str(folder).isprintable():  # line breaks, control characters, bytes that are no UTF-8
        raise MoonflowError(f"run folder {str(folder)!r} has characters that cannot be printed: give another one")
    if taken:
        raise MoonflowError(f"run folder {folder}: {taken[0]} is a file; give another one")
    for parent in folder.parents:
        if is_run_folder(parent):
            raise MoonflowError(f"run folder {folder} lies inside of another run's, {parent}: give another one")
    return folder


def made_by_a_run(path: Path) -> Path:
    """The absolute path of a folder that ``moonflow run`` made; MoonflowError for any other."""
    folder = run_folder(path)
    if not (folder / "profile.toml").is_file():
        raise MoonflowError(f"{path} is not a run's folder: give one that moonflow run made, for example runs/tiny")
    return folder


def is_run_folder(folder: Path) -> bool:
    """Whether ``moonflow run`` made it."""
    return (folder / "profile.toml").is_file() and (folder / "arguments.json").is_file()


def resume_command(folder: Path, *options: str) -> str:
    """The command that goes on with a run: its own resolved profile, or another one would start in its folder."""
    words = ["moonflow", "run", "--profile", str(folder / "profile.toml"), "--run-dir", str(folder), *options]
    return shlex.join(words)


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """``tmp/`` of the run's folder, emptied at the end, under a path that leaves room for a socket's name.

    In a deep folder that is a link in the system's temporary folder: what is written still goes to the run's disk.
    """
    real = folder / "tmp"
    real.mkdir(parents=True, exist_ok=True)
    around = None
    try:
        if len(os.fsencode(real)) + SOCKET_ROOM <= LONGEST_SOCKET:
            yield real
            return
        around = Path(tempfile.mkdtemp(prefix="moonflow-"))
        (around / "tmp").symlink_to(real, target_is_directory=True)
        yield around / "tmp"
    finally:
        shutil.rmtree(real, ignore_errors=True)
        if around is not None:
            shutil.rmtree(around, ignore_errors=True)  # the link, not what it leads to
