"""The promoted checkpoint on this machine, byte for byte what Git says. Also the init container of the Deployment:

python -m components.serve.checkpoint --uri s3://... --sha256 ... --to /checkpoint
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pydantic import ValidationError

from components.runtime import manifest as manifests
from components.runtime.manifest import MANIFEST, Manifest
from components.runtime.store import ObjectStore
from model.errors import MoonflowError

# What serving reads; optimizer and loop state stay in the store.
TRAINING_ONLY = ("optimizer.safetensors", "training_state.json")


def bring(store: ObjectStore, uri: str, sha256: str, folder: Path) -> Manifest:
    """Fetch a checkpoint for serving and leave its manifest beside it.

    Args:
        store: where it is.
        uri: its prefix.
        sha256: hex digest of the manifest, as promoted.
        folder: where it goes.

    Raises:
        MoonflowError: the manifest has another digest, or a file is missing or damaged.
    """
    manifest = manifests.read(store, uri)
    if manifest.sha256 != sha256:
        raise MoonflowError(
            f"{uri}/{MANIFEST} has sha256 {manifest.sha256}, but {sha256} was promoted: promote it again"
        )
    names = [file.name for file in manifest.files if file.name not in TRAINING_ONLY]
    manifests.fetch(store, uri, folder, names)
    (folder / MANIFEST).write_bytes(manifest.canonical())
    return manifest


def verify(folder: Path) -> str:
    """Compare a folder's files with the manifest beside them.

    Returns:
        The manifest's sha256, or "" if there is no manifest to compare with.

    Raises:
        MoonflowError: the manifest cannot be read, or a file differs from it.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return ""
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise MoonflowError(f"{path} is damaged; fetch the checkpoint again") from error
    for file in manifest.files:
        here = folder / file.name
        if file.name not in TRAINING_ONLY and (not here.is_file() or manifests.describe(here, folder) != file):
            raise MoonflowError(f"{here} is missing or is not what {path} says; fetch the checkpoint again")
    return manifest.sha256


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Fetch and verify a promoted checkpoint.")
    parser.add_argument("--uri", required=True, help="prefix of the checkpoint, s3://...")
    parser.add_argument("--sha256", required=True, help="digest of its manifest")
    parser.add_argument("--to", required=True, type=Path, help="folder to write to")
    given = parser.parse_args(arguments)
    try:
        bring(ObjectStore.from_env(), given.uri, given.sha256, given.to)
    except MoonflowError as error:
        sys.exit(f"checkpoint: {error}")


if __name__ == "__main__":
    main()
