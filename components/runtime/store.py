"""The object store as steps see it: objects under keys that are relative to ``MOONFLOW_STORE``.

``s3://bucket/prefix`` is an S3 server (``components.runtime.s3``), ``file:///folder`` a folder of this machine
(``components.runtime.folder_store``). Every method also takes a full URI of its kind.
"""

from __future__ import annotations

import builtins
import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from model.errors import MoonflowError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class NotInStore(MoonflowError):
    """The object does not exist."""


@contextmanager
def disk_errors(path: Path | str) -> Iterator[None]:
    """Turn a full disk at ``path`` into a one-line MoonflowError; other OSErrors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise MoonflowError(
            f"disk full while writing {path}: free some space or point MOONFLOW_RUN_DIR at a larger disk, then run "
            "again (what was published before is kept)"
        ) from None


class ObjectStore(ABC):
    """Objects under keys. Safe to use from several threads."""

    @staticmethod
    def from_env(environment: Mapping[str, str] | None = None) -> ObjectStore:
        """The store named by MOONFLOW_STORE and, for S3, AWS_ENDPOINT_URL_S3, AWS_REGION and AWS's other variables.

        A given ``environment`` must hold the credentials as well; os.environ may leave them to boto3's chain.
        """
        env = os.environ if environment is None else environment
        base = env.get("MOONFLOW_STORE", "")
        if not base:
            raise MoonflowError(
                "MOONFLOW_STORE is not set: give s3://bucket/prefix or file:///folder, or start with `moonflow run`"
            )
        if base.startswith("file://"):
            from components.runtime.folder_store import FolderStore

            return FolderStore(base)
        # Imported here: a machine that keeps its objects in a folder needs no boto3.
        from components.runtime.s3 import S3Store

        return S3Store(
            base,
            endpoint=env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or None,
            region=env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1",
            key=env.get("AWS_ACCESS_KEY_ID", "") if environment is not None else "",
            secret=env.get("AWS_SECRET_ACCESS_KEY", "") if environment is not None else "",
        )

    @abstractmethod
    def check(self) -> None:
        """One cheap request; MoonflowError within ten seconds if the store does not answer."""

    @abstractmethod
    def uri(self, key: str) -> str:
        """The full URI of a key."""

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
    def exists(self, key: str) -> bool:
        """Whether the object exists."""

    @abstractmethod
    def list(self, prefix: str = "") -> builtins.list[str]:
        """All keys that begin with ``prefix``, sorted, relative to MOONFLOW_STORE (full URIs if ``prefix`` is one)."""

    @abstractmethod
    def folders(self, prefix: str) -> builtins.list[str]:
        """Names of the folders directly below ``prefix``, which ends with a slash."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; no error if it is gone already."""
