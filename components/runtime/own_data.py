"""A user's own data where a URI says: a local folder, or shards in the object store (source: ours)."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from components.runtime.address import S3, Address, is_address
from components.runtime.store import NotInStore, ObjectStore, disk_errors
from model.data.own import Part, ShardPart, local_parts
from model.data.source import BrokenShard
from model.errors import MoonflowError


def parts_at(uri: str) -> list[Part]:
    """The pieces of a source. MoonflowError when nothing of use lies there, or the store cannot be reached."""
    if (folder := local_folder(uri)) is not None:
        return local_parts(folder)
    source = ListedShards(uri)
    prefix = uri if uri.endswith("/") else f"{uri}/"
    shards = [key for key in store_of(uri).list(prefix) if key.endswith(".tar")]
    if not shards:
        raise MoonflowError(f"{uri} holds no .tar shards: check the address, and that the shards end in .tar")
    return [ShardPart(source, key) for key in shards]


def local_folder(uri: str) -> Path | None:
    """The folder that a path or a ``file://`` address names; None for an ``s3://`` address."""
    if not is_address(uri):
        return Path(uri).expanduser()
    address = Address.parse(uri)
    return Path(address.key) if address.scheme == "file" else None


def store_of(uri: str) -> ObjectStore:
    """The store of an ``s3://`` address, whatever MOONFLOW_STORE names: a run may keep its own objects elsewhere."""
    return ObjectStore.from_env({**os.environ, "MOONFLOW_STORE": f"{S3}{Address.parse(uri).bucket}"})


@dataclass(frozen=True)
class ListedShards:
    """``model.data.source.ShardSource`` over objects that no manifest describes; shards are full URIs."""

    uri: str

    def open(self, shard: str) -> BinaryIO:
        with disk_errors(tempfile.gettempdir()), tempfile.TemporaryDirectory(prefix="moonflow-") as folder:
            path = Path(folder) / "shard.tar"
            try:
                store_of(self.uri).download(shard, path)
            except NotInStore as error:
                raise BrokenShard(str(error)) from None
            return path.open("rb")  # readable until it is closed, though its name goes now

    def soon(self, shard: str) -> None:
        """Nothing is brought ahead: such shards are read once."""
