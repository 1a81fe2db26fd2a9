"""Where shards are read from: a protocol, and a local folder of them (source: ours)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Protocol

from model.boundary.errors import MoonflowError
from model.data.samples.files import open_file


class BrokenShard(MoonflowError):
    """A shard is missing or damaged, and reading it again does not help."""


class ShardSource(Protocol):
    """Shards by their names in index.json."""

    def open(self, shard: str) -> BinaryIO:
        """The shard's bytes, seekable; the caller closes it.

        Raises:
            BrokenShard: it is missing or not what was written.
            MoonflowError: it cannot be reached now.
        """
        ...

    def prefetch(self, shard: str) -> None:
        """Say that the shard will be opened soon, so that it can be fetched; returns at once and never raises."""
        ...


class JoinedShards:
    """Shards of two sources.

    Args:
        first: of all shards but ``names``.
        second: of the shards ``names``.
    """

    def __init__(self, first: ShardSource, second: ShardSource, names: Iterable[str]) -> None:
        self._first, self._second, self._names = first, second, frozenset(names)

    def open(self, shard: str) -> BinaryIO:
        """As ``ShardSource.open``."""
        return self._of(shard).open(shard)

    def prefetch(self, shard: str) -> None:
        """As ``ShardSource.prefetch``."""
        self._of(shard).prefetch(shard)

    def _of(self, shard: str) -> ShardSource:
        return self._second if shard in self._names else self._first


class LocalShards:
    """Shards below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, shard: str) -> BinaryIO:
        """As ``ShardSource.open``."""
        path = self.folder / shard
        try:
            return open_file(path)
        except OSError as error:
            raise BrokenShard(f"shard {path} cannot be read ({error.strerror}): run prepare_data again") from None

    def prefetch(self, shard: str) -> None:
        """Nothing to do: the shard is here."""
