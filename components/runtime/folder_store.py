"""The object store as a folder of this machine: for a GPU machine of one's own, without an S3 server (source: ours)."""

from __future__ import annotations

import builtins
import itertools
import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path, PurePosixPath

from components.runtime.store import NotInStore, ObjectStore, disk_errors
from model.errors import MoonflowError

_SCHEME = "file://"
_PART = ".part-"  # a file of this name is still being written, or its writer died
_numbers = itertools.count()


class FolderStore(ObjectStore):
    """Objects are files; each appears by a rename, so that nobody sees half of one."""

    def __init__(self, base: str) -> None:
        """``base`` is ``file:///absolute/folder``; MoonflowError if it is not."""
        self._base = _path(base)

    def check(self) -> None:
        try:
            self._base.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MoonflowError(f"{self._base} cannot be used ({error.strerror}): mend MOONFLOW_STORE") from None

    def uri(self, key: str) -> str:
        return key if key.startswith(_SCHEME) else f"{_SCHEME}{self._base}/{key}"

    def put(self, key: str, data: bytes) -> None:
        path = self._locate(key)
        part = self._written(path, data)
        part.replace(path)

    def put_new(self, key: str, data: bytes) -> bool:
        path = self._locate(key)
        part = self._written(path, data)
        try:
            os.link(part, path)  # fails where the name is taken, which a rename does not
        except FileExistsError:
            return False
        finally:
            part.unlink()
        return True

    def get(self, key: str) -> bytes:
        try:
            return self._locate(key).read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            raise NotInStore(f"{self.uri(key)} does not exist") from None

    def upload(self, path: Path, key: str) -> None:
        target = self._locate(key)
        part = self._part(target)
        with disk_errors(target):
            shutil.copyfile(path, part)
            _to_disk(part)
        part.replace(target)

    def download(self, key: str, path: Path) -> None:
        part = self._part(path)
        try:
            with disk_errors(path):
                shutil.copyfile(self._locate(key), part)
        except (FileNotFoundError, IsADirectoryError):
            raise NotInStore(f"{self.uri(key)} does not exist") from None
        else:
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def exists(self, key: str) -> bool:
        return self._locate(key).is_file()

    def list(self, prefix: str = "") -> builtins.list[str]:
        start, _, stem = prefix.removeprefix(_SCHEME).rpartition("/")
        below = Path(f"{start}/") if prefix.startswith(_SCHEME) else self._base / start
        found = (
            path.relative_to(below).as_posix() for path in below.rglob("*") if path.is_file() and _PART not in path.name
        )
        head = f"{_SCHEME}{below}/" if prefix.startswith(_SCHEME) else f"{start}/" if start else ""
        return sorted(head + name for name in found if name.startswith(stem))

    def folders(self, prefix: str) -> builtins.list[str]:
        below = self._locate(prefix)
        return sorted(path.name for path in below.iterdir() if path.is_dir()) if below.is_dir() else []

    def delete(self, key: str) -> None:
        path = self._locate(key)
        path.unlink(missing_ok=True)
        for folder in path.parents:  # an S3 prefix without objects does not exist either
            if folder == self._base:
                break
            with suppress(OSError):
                folder.rmdir()

    def _locate(self, key: str) -> Path:
        if key.startswith(_SCHEME):
            return _path(key)
        if ".." in PurePosixPath(key).parts:
            raise MoonflowError(f"{key!r} is not a key: it leads out of {self._base}")
        return self._base / key

    def _written(self, path: Path, data: bytes) -> Path:
        part = self._part(path)
        with disk_errors(path):
            part.write_bytes(data)
            _to_disk(part)
        return part

    def _part(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(f"{path.name}{_PART}{os.getpid()}-{threading.get_ident()}-{next(_numbers)}")


def _path(uri: str) -> Path:
    path = Path(uri.removeprefix(_SCHEME))
    if not uri.startswith(_SCHEME) or not path.is_absolute():
        raise MoonflowError(f"{uri!r} is not a folder's address: write file:///absolute/folder")
    return path


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
