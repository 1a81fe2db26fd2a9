"""Shards of published data, fetched from the object store when they are needed (source: ours)."""

from __future__ import annotations

import os
import queue
import threading
from pathlib import Path
from typing import Any, BinaryIO

from components.runtime.checkpoints import manifest as manifests
from components.runtime.checkpoints.manifest import File, Manifest, file_sha256
from components.runtime.store.object_store import NotInStore, ObjectStore, disk_errors
from components.runtime.store.open_store import open_store
from model.boundary.errors import MoonflowError
from model.data.batches.folder import DataFolder
from model.data.samples.shard_source import BrokenShard

SHARD = ".tar"
CACHE_BYTES = 8 * 2**30  # of shards on the local disk; the least recently opened go first
COMING = 32  # shards that may wait to be fetched in the background


def open_data(store: ObjectStore, uri: str, cache: Path) -> DataFolder:
    """The data manifest at ``uri``: index, lengths and tokenizer are fetched now, shards when they are opened.

    Raises:
        MoonflowError: there is no manifest, or it is not one of data, or the store cannot be reached.
    """
    manifest = manifests.read(store, uri)
    names = [file.name for file in manifest.files if not file.name.endswith(SHARD)]
    if "index.json" not in names:
        raise MoonflowError(f"{uri} holds no index.json: it is {manifest.step}'s output, not prepare_data's")
    folder = cache / "data" / manifest.sha256
    manifests.fetch_files(store, uri, manifest, folder, names)
    return DataFolder(folder, StoredShards(store, uri, manifest, cache / "shards"))


class StoredShards:
    """``model.data.samples.shard_source.ShardSource`` over one published manifest.

    Shards are checked against the manifest's digests and kept under them in ``cache``, which all processes of a machine
    share, up to ``capacity`` bytes. A shard announced by ``prefetch`` is fetched by a background thread. A pickled copy
    in another process reads from the store that the environment of that process names.
    """

    def __init__(
        self, store: ObjectStore, uri: str, manifest: Manifest, cache: Path, capacity: int = CACHE_BYTES
    ) -> None:
        # Not manifest.uri: a copied prefix must be read from where it is.
        self._prefix = manifests.prefix_of(uri)
        self._files = {file.name: file for file in manifest.files if file.name.endswith(SHARD)}
        self._cache, self._capacity = cache, capacity
        self._start(store)

    def _start(self, store: ObjectStore) -> None:
        self._store = store
        self._locks = {name: threading.Lock() for name in self._files}
        self._coming: queue.Queue[str] = queue.Queue(COMING)
        self._thread: threading.Thread | None = None

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_prefix", "_files", "_cache", "_capacity")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start(open_store())

    def open(self, shard: str) -> BinaryIO:
        file = self._file(shard)
        while True:
            path = self._bring(file)
            try:
                stream = path.open("rb")
            except FileNotFoundError:  # another process made room just now
                continue
            os.utime(path)
            return stream

    def prefetch(self, shard: str) -> None:
        if shard not in self._files or self._path(self._files[shard]).exists():
            return
        try:
            self._coming.put_nowait(shard)
        except queue.Full:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._bring_all, name="shards", daemon=True)
            self._thread.start()

    def _bring_all(self) -> None:
        while True:
            shard = self._coming.get()
            try:
                self._bring(self._files[shard])
            except (MoonflowError, OSError):
                continue  # opening it tries again, and raises the reason

    def _file(self, shard: str) -> File:
        if shard not in self._files:
            raise BrokenShard(
                f"{self._prefix} holds no shard {shard!r} though index.json names it: run prepare_data again"
            )
        return self._files[shard]

    def _path(self, file: File) -> Path:
        return self._cache / file.sha256

    def _bring(self, file: File) -> Path:
        """A verified local copy."""
        path = self._path(file)
        with self._locks[file.name]:
            if path.exists():
                return path
            # The copy has this name until it is verified. ``part_file`` cannot give it one: the store's download writes
            # a part of its own and renames it over ours, which loses the lock. ``_make_room`` removes what dead
            # processes left.
            partial = path.with_name(f"{path.name}.{os.getpid()}")
            where = f"{self._store.uri(self._prefix)}/{file.path}"
            try:
                with disk_errors(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    self._make_room(file.size)
                    self._store.download(f"{self._prefix}/{file.path}", partial)
                if partial.stat().st_size != file.size or file_sha256(partial) != file.sha256:
                    raise BrokenShard(
                        f"{where} is not what its manifest says: run prepare_data again under a new run id"
                    )
                partial.replace(path)
            except NotInStore:
                raise BrokenShard(
                    f"{where} is missing although its manifest names it: run prepare_data again"
                ) from None
            finally:
                partial.unlink(missing_ok=True)
            return path

    def _make_room(self, size: int) -> None:
        """Remove the least recently opened shards until ``size`` more bytes fit; open ones stay readable."""
        found = []
        for path in self._cache.iterdir():
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            found.append((stat.st_mtime, stat.st_size, path))
        total = sum(held for _, held, _ in found)
        for _, held, path in sorted(found):
            if total + size <= self._capacity:
                return
            path.unlink(missing_ok=True)
            total -= held
