"""The object store as a folder of this machine, for a single GPU machine without an S3 server (source: ours).

A key never leaves the folder: not by its name (``components.runtime.store.address``) and not by symbolic links, of
which only the folder itself may be one. Whoever can make links in it while a step runs can also write its objects.
"""

from __future__ import annotations

import builtins
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from components.runtime.store.address import FILE, Address, is_address, is_key
from components.runtime.store.object_store import NotInStore, ObjectStore, disk_errors
from model.boundary.errors import MoonflowError
from model.boundary.whole_file import PART, part_file, sweep

_COPY_BYTES = 2**20  # at a time
_ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class FolderStore(ObjectStore):
    """Objects are files; each appears by a rename, so that nobody reads half of one."""

    def __init__(self, base: str) -> None:
        """``base`` is ``file:///absolute/folder``; MoonflowError if it is not."""
        super().__init__(base)
        if self.base.scheme != "file":
            raise MoonflowError(f"{base!r} is not a folder's address: write file:///absolute/folder")
        self._folder = Path(self.base.key)

    def check(self) -> None:
        """Also removes what dead writers left, which may be what fills the disk."""
        with _explained(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        for part in sweep(self._folder):
            self._remove_emptied(part)

    def put(self, key: str, data: bytes) -> None:
        with self._written(key) as (stream, part, path):
            stream.write(data)
            _to_disk(stream)
            part.replace(path)

    def put_new(self, key: str, data: bytes) -> bool:
        with self._written(key) as (stream, part, path):
            stream.write(data)
            _to_disk(stream)
            try:
                os.link(part, path)  # fails where the name is taken, which a rename does not
            except FileExistsError:
                if path.is_dir():
                    raise
                return False
        return True

    def get(self, key: str) -> bytes:
        path = self._path(self._locate(key))
        with _explained(path):
            try:
                return path.read_bytes()
            except _ABSENT:
                raise NotInStore(f"{self.uri(key)} does not exist") from None

    def upload(self, path: Path, key: str) -> None:
        with path.open("rb") as source, self._written(key) as (stream, part, target):
            shutil.copyfileobj(source, stream, _COPY_BYTES)
            _to_disk(stream)
            part.replace(target)

    def download(self, key: str, path: Path) -> None:
        source = self._path(self._locate(key))
        with _explained(source):
            try:
                data = source.open("rb")
            except _ABSENT:
                raise NotInStore(f"{self.uri(key)} does not exist") from None
        with data, disk_errors(path), part_file(path) as (stream, part):
            shutil.copyfileobj(data, stream, _COPY_BYTES)
            stream.flush()
            part.replace(path)

    def size(self, key: str) -> int | None:
        path = self._path(self._locate(key))
        return path.stat().st_size if path.is_file() else None

    def list(self, prefix: str = "") -> builtins.list[str]:
        address = self._locate(prefix)
        folder = self._path(replace(address, key=address.key.rpartition("/")[0] + "/"))
        found = [path for path in _files(folder) if path.startswith(address.key)]
        if is_address(prefix):
            return sorted(FILE + path for path in found)
        keys = (self.base.relative(Address("file", "", path)) for path in found)
        return sorted(key for key in keys if key is not None and is_key(key))

    def folders(self, prefix: str) -> builtins.list[str]:
        below = self._path(self._locate(prefix))
        if not below.is_dir():
            return []
        return sorted(path.name for path in below.iterdir() if path.is_dir() and not path.is_symlink())

    def delete(self, key: str) -> None:
        path = self._path(self._locate_writable(key))
        with _explained(path):
            try:
                path.unlink()
            except _ABSENT:
                return
        self._remove_emptied(path)

    def _remove_emptied(self, path: Path) -> None:
        """Remove the folders that the file at ``path`` left empty: an S3 prefix without objects does not exist."""
        for folder in path.parents:
            if folder == self._folder:
                break
            with suppress(OSError):
                folder.rmdir()

    @contextmanager
    def _written(self, key: str) -> Iterator[tuple[BinaryIO, Path, Path]]:
        """Open a part file for ``key``: yields its stream, its path, and the path that it is to be renamed to."""
        path = self._path(self._locate_writable(key))
        with _explained(path), part_file(path) as (stream, part):
            yield stream, part, path
            _folder_to_disk(path.parent)

    def _path(self, address: Address) -> Path:
        key = self.base.relative(address)
        if key is not None and os.path.realpath(address.key) != str(Path(os.path.realpath(self._folder), key)):
            raise MoonflowError(f"{address} is reached by a symbolic link: put the folder itself below {self._folder}")
        return Path(address.key)


def _files(folder: Path) -> Iterator[str]:
    """Paths of all whole files below a folder; links are not followed."""
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            if PART not in name and os.path.isfile(path) and not os.path.islink(path):
                yield path


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an error of the file system about ``path`` into one line."""
    try:
        with disk_errors(path):
            yield
    except OSError as error:
        raise MoonflowError(
            f"{path} cannot be used ({error.strerror or error}): fix MOONFLOW_STORE, or what lies there"
        ) from None


def _to_disk(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _folder_to_disk(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
