"""Where shards are read from: a protocol, and a local folder of them (source: ours)."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Protocol

from model.errors import MoonflowError


class BrokenShard(MoonflowError):
    """A shard that is missing or damaged for good; asking again will not help."""


class ShardSource(Protocol):
    """Shards by their names in index.json."""

    def open(self, shard: str) -> BinaryIO:
        """The shard's bytes, seekable; the caller closes it.

        Raises:
            BrokenShard: it is missing or not what was written.
            MoonflowError: it cannot be reached now.
        """
        ...

    def soon(self, shard: str) -> None:
        """The shard will be opened before long; returns at once and never raises."""
        ...


class LocalShards:
    """Shards below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, shard: str) -> BinaryIO:
        path = self.folder / shard
        try:
            return path.open("rb")
        except OSError as error:
            raise BrokenShard(f"shard {path} cannot be read ({error.strerror}): run prepare_data again") from None

    def soon(self, shard: str) -> None:
        """Nothing to bring."""
