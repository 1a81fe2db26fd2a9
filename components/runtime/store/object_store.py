"""The object store as steps see it: objects under keys that are relative to ``MOONFLOW_STORE``.

``components.runtime.store.open_store`` opens the kind that an address names: ``s3://bucket/prefix`` an S3 server
(``components.runtime.store.s3``), ``file:///folder`` a local folder (``components.runtime.store.folder_store``).
Every method also takes a full address of its kind: a step may read from anywhere, but it writes and deletes only below
``MOONFLOW_STORE``, under keys that every kind of store can hold (``components.runtime.store.address``).
"""

from __future__ import annotations

import builtins
import errno
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from components.runtime.store.address import Address, checked, is_address, path_fault
from model.boundary.errors import MoonflowError, Unavailable

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class NotInStore(MoonflowError):
    """The object does not exist."""


@contextmanager
def disk_errors(path: Path | str) -> Iterator[None]:
    """Turn a full disk at ``path`` into one line, Unavailable; other OSErrors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise Unavailable(
            f"disk full while writing {path}: free some space or point MOONFLOW_RUN_DIR at a larger disk, then run "
            "again (what was published before is kept)"
        ) from None


class ObjectStore(ABC):
    """Objects under keys. Safe to use from several threads."""

    def __init__(self, base: str) -> None:
        """``base`` is the address that keys are relative to; MoonflowError if it is none."""
        address = Address.parse(base)
        within = (address.key[1:] if address.scheme == "file" else address.key).removesuffix("/")
        fault = path_fault(within) if within else None
        if fault or address.key == "//" or (address.scheme == "s3" and address.key == "/"):
            raise MoonflowError(f"{base!r} cannot be a store ({fault or 'it has an empty part'}): fix MOONFLOW_STORE")
        self.base = replace(address, key=f"/{within}" if address.scheme == "file" else within)

    def uri(self, key: str) -> str:
        """The full address of a key."""
        return str(self._locate(key))

    @abstractmethod
    def check(self) -> None:
        """One cheap request; MoonflowError within ten seconds if the store does not answer."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write an object; durable when it returns."""

    @abstractmethod
    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object unless the key exists; False, and nothing written, if it does."""

    @abstractmethod
    def get(self, key: str) -> bytes:
        """An object's bytes; NotInStore if there is none."""

    @abstractmethod
    def upload(self, path: Path, key: str) -> None:
        """Write a local file as an object."""

    @abstractmethod
    def download(self, key: str, path: Path) -> None:
        """Write an object to a local file, atomically; NotInStore if there is none, MoonflowError on a full disk."""

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Bytes of an object; None if there is none."""

    def exists(self, key: str) -> bool:
        """Whether the object exists."""
        return self.size(key) is not None

    @abstractmethod
    def list(self, prefix: str = "") -> builtins.list[str]:
        """All keys that begin with ``prefix``, sorted, relative to MOONFLOW_STORE.

        If ``prefix`` is a full address, so are the results. Otherwise objects that our keys cannot name are left out.
        """

    @abstractmethod
    def folders(self, prefix: str) -> builtins.list[str]:
        """Names of the folders directly below ``prefix``, which ends with a slash."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; no error if it is gone already."""

    def _locate(self, key: str) -> Address:
        """Where to read; ``key`` may be a prefix."""
        if not is_address(key):
            if key:
                checked(key.removesuffix("/"))
            return self.base.below(key)
        address = Address.parse(key)
        if address.scheme != self.base.scheme:
            raise MoonflowError(f"{key} cannot be in the store {self.base}: fix the address or MOONFLOW_STORE")
        return address

    def _locate_writable(self, key: str) -> Address:
        """Where to write or delete."""
        address = self._locate(key)
        if (relative := self.base.relative(address)) is None:
            raise MoonflowError(f"{key} lies outside of MOONFLOW_STORE ({self.base}): nothing is written there")
        checked(relative)
        return address
