"""Whether a promoted checkpoint could be served now, without fetching its weights."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from components.release import signing
from components.release.overlay import Served
from components.release.signing import SIGNATURE
from components.runtime.checkpoints import manifest as manifests
from components.runtime.store.object_store import ObjectStore
from model.boundary.errors import MoonflowError

_THREADS = 8  # parallel questions to the store


def problem(store: ObjectStore, served: Served, public_key: Path | None) -> str:
    """Why a checkpoint cannot be served, "" if it seems that it can.

    Its manifest must have the digest that Git names, and every file must be there with its size; with ``public_key``,
    that key must have signed the files. The bytes themselves are checked when they are fetched.
    """
    try:
        manifest = manifests.read(store, served.uri)
        if manifest.sha256 != served.manifest_sha256:
            return f"its manifest has sha256 {manifest.sha256} now"
        prefix = served.uri.rstrip("/")
        with ThreadPoolExecutor(_THREADS) as pool:
            sizes = list(pool.map(store.size, (f"{prefix}/{file.path}" for file in manifest.files)))
        missing = [file.name for file, size in zip(manifest.files, sizes, strict=True) if size is None]
        if missing:
            return f"files missing: {len(missing)} of {len(sizes)}, first {missing[0]}"
        cut = [file.name for file, size in zip(manifest.files, sizes, strict=True) if size != file.size]
        if cut:
            return f"files of another size: {len(cut)} of {len(sizes)}, first {cut[0]}"
        if public_key is None:
            return ""
        digests = {file.name: file.sha256 for file in manifest.files}
        with tempfile.TemporaryDirectory() as folder:
            if SIGNATURE in digests:
                manifests.fetch(store, served.uri, Path(folder), [SIGNATURE])
            signing.check_recorded(Path(folder), digests, public_key, served.uri)
    except MoonflowError as error:
        return str(error)
    return ""
