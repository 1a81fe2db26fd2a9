"""Fetches the promoted checkpoint, byte for byte what Git says. The init container of the endpoint runs this module:

python -m components.release.fetch --uri s3://... --sha256 ... --to /checkpoint --public-key /keys/public.pem

The digest in Git says which bytes; the signature says who exported them. Whoever loads the folder later compares it
with that digest again (``verify``): the manifest next to the files proves nothing by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

from pydantic import ValidationError

from components.release import signing
from components.release.signing import SIGNATURE
from components.runtime.checkpoints import manifest as manifests
from components.runtime.checkpoints.manifest import MANIFEST, Manifest
from components.runtime.store.object_store import ObjectStore, disk_errors
from components.runtime.store.open_store import open_store
from model.boundary.errors import MoonflowError

NONE = "none"
"""What an overlay holds before its first promotion. components/release/overlay.py has the same value, but the serving
image lacks what that module imports."""


def bring(store: ObjectStore, uri: str, sha256: str, folder: Path, public_key: Path | None = None) -> Manifest:
    """Fetch a checkpoint for serving and leave its manifest next to it.

    Args:
        store: where it is.
        uri: its prefix.
        sha256: hex digest of the manifest, as promoted.
        folder: where it goes.
        public_key: the key that must have signed it; None: only the digest is compared.

    Raises:
        MoonflowError: the manifest has another digest, a file is missing or damaged, the folder holds another file,
            or the signature is missing, was made with another key, or covers other files or another manifest.
    """
    manifest = manifests.read(store, uri)
    if manifest.sha256 != sha256:
        raise MoonflowError(
            f"{uri}/{MANIFEST} has sha256 {manifest.sha256}, but {sha256} was promoted: promote it again"
        )
    names = [file.name for file in manifest.files]
    if public_key is not None and SIGNATURE not in names:
        raise MoonflowError(f"{uri} is not signed, but {public_key} is to verify it: promote it again")
    manifests.fetch_files(store, uri, manifest, folder, names)
    _refuse_strangers(folder, manifest)
    if public_key is not None:
        signing.check_release(folder, manifest, public_key, uri)
    with disk_errors(folder):
        (folder / MANIFEST).write_bytes(manifest.canonical())
    return manifest


def verify(folder: Path, sha256: str = "") -> str:
    """Compare a folder's files with the manifest next to them, and the manifest with what was promoted.

    Args:
        sha256: the manifest's digest as it is known from elsewhere: from Git, where a promotion committed it. Without
            one, a folder whose manifest was replaced along with its files passes, and only damage is found.

    Returns:
        The manifest's sha256, or "" if there is no manifest to compare with and none was asked for.

    Raises:
        MoonflowError: the manifest cannot be read or has another digest, or the files differ from it.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if sha256:
            raise MoonflowError(f"{folder} has no {MANIFEST}, but {sha256} was promoted; fetch the checkpoint again")
        return ""
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if sha256 not in ("", found):
        raise MoonflowError(f"{path} has sha256 {found}, but {sha256} was promoted; fetch the checkpoint again")
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise MoonflowError(f"{path} is damaged; fetch the checkpoint again") from error
    for file in manifest.files:
        here = folder / file.name
        if not here.is_file() or manifests.describe(here, folder).content != file.content:
            raise MoonflowError(f"{here} is missing or is not what {path} says; fetch the checkpoint again")
    _refuse_strangers(folder, manifest)
    return found


def stamps(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, size and time of the last change of each file.

    If they are the same before ``verify`` and after the files were loaded, what was hashed is what was loaded.
    """
    found = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {str(path): (stat.st_ino, stat.st_size, stat.st_ctime_ns) for path, stat in found.items()}


def _refuse_strangers(folder: Path, manifest: Manifest) -> None:
    """Servers load what lies in the folder, code included, whether or not the manifest names it."""
    named = {MANIFEST, *(file.name for file in manifest.files)}
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if strangers := sorted(here - named):
        raise MoonflowError(f"{folder / strangers[0]} is not in the checkpoint's manifest; remove it or fetch again")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Fetch and verify a promoted checkpoint.")
    parser.add_argument("--uri", required=True, help="prefix of the checkpoint, s3://...")
    parser.add_argument("--sha256", required=True, help="digest of its manifest")
    parser.add_argument("--to", required=True, type=Path, help="folder to write to")
    parser.add_argument("--public-key", type=Path, help="PEM file of the key that must have signed it")
    given = parser.parse_args(arguments)
    if given.uri == NONE:
        sys.exit(
            "checkpoint: nothing is promoted to this environment yet; the first promotion's sync replaces this pod"
        )
    try:
        bring(open_store(), given.uri, given.sha256, given.to, given.public_key)
    except MoonflowError as error:
        sys.exit(f"checkpoint: {error}")


if __name__ == "__main__":
    main()
