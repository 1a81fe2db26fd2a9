"""Whether a promoted checkpoint could be served now, found out without fetching its weights."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from components.promote import signing
from components.promote.overlay import Served
from components.promote.signing import SIGNATURE
from components.runtime import manifest as manifests
from components.runtime.store import ObjectStore
from model.errors import MoonflowError

_THREADS = 8  # parallel questions to the store


def problem(store: ObjectStore, served: Served, public_key: Path | None) -> str:
    """Why a checkpoint cannot be served, "" if nothing speaks against it.

    Its manifest must be there with the digest that Git names, and so must every file with its size; with
    ``public_key``, that key must have signed these files. What only the bytes themselves would tell is left to whoever
    fetches them.
    """
    try:
        manifest = manifests.read(store, served.uri)
        if manifest.sha256 != served.manifest_sha256:
            return f"its manifest has sha256 {manifest.sha256} now"
        prefix = served.uri.rstrip("/")
        with ThreadPoolExecutor(_THREADS) as pool:
            sizes = list(pool.map(store.size, (f"{prefix}/{file.place}" for file in manifest.files)))
        missing = [file.name for file, size in zip(manifest.files, sizes, strict=True) if size is None]
        if missing:
            return f"of its files {len(missing)} are gone, {missing[0]} first"
        cut = [file.name for file, size in zip(manifest.files, sizes, strict=True) if size != file.size]
        if cut:
            return f"of its files {len(cut)} have another size, {cut[0]} first"
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
