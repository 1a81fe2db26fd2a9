"""The folder of a local run: which paths can be one, the command that continues it, and its temporary folder."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.boundary.errors import MoonflowError

SOCKET_ROOM = 40
"""Bytes that programs append to TMPDIR to name a socket; multiprocessing: /pymp-xxxxxxxx/listener-xxxxxxxx."""
LONGEST_SOCKET = 107
"""Largest number of bytes in a Unix socket's path (Linux: sun_path has 108, and the last one is zero)."""
SEEDS_PROFILE = "seeds.toml"
"""In the folder of ``moonflow seeds``: the profile before its seeds are moved."""


def run_folder(path: Path) -> Path:
    """The absolute path of a run's folder, whether it exists or not; nothing is written.

    Raises:
        MoonflowError: its name cannot be printed in logs and commands, a file is in its place, or it is inside another
            run's folder, which that run clears.
    """
    try:
        folder = path.resolve()
        taken = [place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()]
    except (OSError, RuntimeError) as error:  # a path too long, a folder that may not be read, a circle of links
        reason = error.strerror if isinstance(error, OSError) else "it is a circle of links"
        raise MoonflowError(f"run folder {str(path)[:200]!r}: {reason}; give another one") from None
    if not str(folder).isprintable():  # line breaks, control characters, bytes that are no UTF-8
        raise MoonflowError(f"run folder {str(folder)!r} has characters that cannot be printed: give another one")
    if taken:
        raise MoonflowError(f"run folder {folder}: {taken[0]} is a file; give another one")
    for parent in folder.parents:
        if is_run_folder(parent):
            raise MoonflowError(f"run folder {folder} is inside another run's, {parent}: give another one")
    return folder


def made_by_a_run(path: Path) -> Path:
    """The absolute path of a folder that ``moonflow run`` made. MoonflowError for any other."""
    folder = run_folder(path)
    if not (folder / "profile.toml").is_file():
        raise MoonflowError(
            f"{path} is not a run's folder: make one with `moonflow run --profile tiny`, or give the folder of "
            "another run"
        )
    return folder


def is_run_folder(folder: Path) -> bool:
    """Whether ``moonflow run`` made it."""
    # os.path answers for names that are too long and for folders that may not be read; Path raises.
    return os.path.isfile(folder / "profile.toml") and os.path.isfile(folder / "arguments.json")


def run_id_of(folder: Path) -> str:
    """The run's folder in the object store. MoonflowError if the file that says so is damaged."""
    path = folder / "arguments.json"
    try:
        return str(json.loads(path.read_text())["p00_run_id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = f"{path} cannot be read or is damaged ({type(error).__name__} {error})"
        raise MoonflowError(f"{told}: {resume_command(folder)} writes it anew") from None


def is_seeds_folder(folder: Path) -> bool:
    """Whether ``moonflow seeds`` made it."""
    return (folder / SEEDS_PROFILE).is_file()


def services_folder(run_dir: Path) -> Path:
    """The folder whose object store and MLflow hold a run: its own, or that of the ``moonflow seeds`` it belongs to."""
    return run_dir.parent if is_seeds_folder(run_dir.parent) else run_dir


def resume_command(folder: Path, *options: str) -> str:
    """The command that continues a run, or the runs of ``moonflow seeds``. It names the resolved profile, so that no
    other one starts there."""
    holder = services_folder(folder)
    command, profile = ("seeds", SEEDS_PROFILE) if is_seeds_folder(holder) else ("run", "profile.toml")
    words = ["moonflow", command, "--profile", str(holder / profile), "--run-dir", str(holder), *options]
    return shlex.join(words)


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """``tmp/`` of the run's folder, emptied at the end, under a path that leaves room for a socket's name.

    For a folder with a long path it is a link in the system's temporary folder; files still go to the run's disk.
    """
    real = folder / "tmp"
    real.mkdir(parents=True, exist_ok=True)
    link_folder = None
    try:
        if len(os.fsencode(real)) + SOCKET_ROOM <= LONGEST_SOCKET:
            yield real
            return
        link_folder = Path(tempfile.mkdtemp(prefix="moonflow-"))
        (link_folder / "tmp").symlink_to(real, target_is_directory=True)
        yield link_folder / "tmp"
    finally:
        shutil.rmtree(real, ignore_errors=True)
        if link_folder is not None:
            shutil.rmtree(link_folder, ignore_errors=True)  # the link, not its target
