"""A checkpoint to start from that is in another local run: its folder is named, its object store holds the files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from rich.console import Console

from components.import_checkpoint.config import HUB, LAID_OUT
from components.runtime.checkpoints import manifest as manifests
from components.runtime.checkpoints.manifest import MANIFEST
from components.runtime.steps import IMPORTED
from components.runtime.store.address import is_address
from components.runtime.store.object_store import disk_errors
from components.runtime.store.open_store import open_store
from model.boundary.errors import MoonflowError
from model.boundary.whole_file import write_whole
from pipelines.profile import Profile
from pipelines.run_folder import is_run_folder, run_id_of, services_folder
from pipelines.services import visited


def source_of(profile: Profile) -> str:
    """What the profile's run starts from; "" if it starts from nothing."""
    return str(profile.step(IMPORTED).model_dump()["source"]) if IMPORTED in profile.steps else ""


def local_source(profile: Profile) -> Path | None:
    """The path that the profile names as its source; None if it names none, or an address."""
    source = source_of(profile)
    return None if not source or is_address(source) or source.startswith(HUB) else Path(os.path.expanduser(source))


def run_and_step(path: Path) -> tuple[Path, str] | None:
    """The run's folder that ``runs/base``, ``runs/base/mid_train`` or ``runs/base/mid_train/3`` names, and what follows
    it; None if the path names no run, or a folder that is there inside of one."""
    path = path.absolute()
    if is_run_folder(path):
        return path, ""
    folder = next((folder for folder in path.parents[:2] if is_run_folder(folder)), None)
    return None if folder is None or os.path.isdir(path) else (folder, path.relative_to(folder).as_posix())


def fetch_source(profile: Profile, run_dir: Path, console: Console) -> dict[str, str]:
    """Copy the checkpoint of a run that the profile starts from to ``run_dir``; the variable that tells the step of it.

    The other run's services are up only meanwhile, unless they were kept. Nothing is copied again, and nothing if the
    source is no run's.

    Raises:
        MoonflowError: that run has no such checkpoint, or it is in use.
    """
    path = local_source(profile)
    if path is None or (named := run_and_step(path)) is None:
        return {}
    folder, below = named
    place = hashlib.sha256(f"{folder.resolve()}/{below}".encode()).hexdigest()[:16]
    target = run_dir / "work" / "source" / place
    if folder.resolve() == run_dir.resolve():
        raise MoonflowError(f"import_checkpoint.source is {path}, this run's own folder: name another one's")
    if not (target / MANIFEST).is_file():
        # These import torch, for which only a run that starts from another one should wait.
        from components.import_checkpoint.sources import newest_checkpoint
        from model.checkpoint.folder import serves

        run_id = run_id_of(folder)
        waiting = console.status(f"fetching the checkpoint to start from, {path}")
        with waiting, visited(services_folder(folder)) as environment, disk_errors(target):
            store = open_store(environment)
            found = newest_checkpoint(store, f"{run_id}/{below}".rstrip("/"))
            if found is None:
                raise MoonflowError(
                    f"import_checkpoint.source: {path} has no complete checkpoint: name another run, or one of its "
                    f"steps as in {folder}/mid_train"
                )
            prefix, manifest = found
            names = [file.name for file in manifest.files if serves(file.name)]
            manifests.fetch_files(store, prefix, manifest, target, names)
            write_whole(target / MANIFEST, manifest.canonical())  # last: without it, the files are fetched again
    return {LAID_OUT: str(target)}
