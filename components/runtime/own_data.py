"""A user's own data where a URI says, a local folder or shards in the object store, and what of it is of use (ours)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from components.runtime.address import S3, Address, is_address
from components.runtime.store import NotInStore, ObjectStore, disk_errors
from model.data.own import Checked, Part, check, local_parts, shard_parts
from model.data.problems import Note, Problem, attempt, one_line
from model.data.sample import Sample
from model.data.source import BrokenShard
from model.data.walk import Entry, unused
from model.errors import MoonflowError
from model.image import ImageConfig
from model.rl.tasks import check_task
from model.tokenizer import Tokenizer


def parts_at(uri: str) -> list[Part]:
    """The pieces of a source. MoonflowError when nothing of use lies there, or the store cannot be reached."""
    if (folder := local_folder(uri)) is not None:
        return local_parts(folder)
    prefix = uri if uri.endswith("/") else f"{uri}/"
    entries = [Entry(key.removeprefix(prefix)) for key in store_of(uri).list(prefix) if not key.endswith("/")]
    if parts := shard_parts(ListedShards(prefix), entries, uri):
        return parts
    found = "".join(f"; {note.line}" for note in unused(uri, entries, "of object stores, only shards are read"))
    raise MoonflowError(f"{uri} holds no .tar shards: check the address, and that the shards end in .tar{found}")


def checked(part: Part, tokenizer: Tokenizer, image_config: ImageConfig) -> Iterator[Checked | Problem | Note]:
    """All that a part holds, every sample read, decoded and tokenised once. Never raises for a record."""
    for found in part.samples():
        if not isinstance(found, Sample):
            yield found
            continue
        result = attempt(f"sample {found.key}", _checked, found, tokenizer, image_config)
        yield Problem(one_line(f"{part.where}: {result.line}")) if isinstance(result, Problem) else result


def _checked(sample: Sample, tokenizer: Tokenizer, image_config: ImageConfig) -> Checked:
    check_task(sample)
    return check(sample, tokenizer, image_config)


def local_folder(uri: str) -> Path | None:
    """The folder that a path or a ``file://`` address names; None for an ``s3://`` address."""
    if not is_address(uri):
        return Path(os.path.expanduser(uri))  # of an unknown user it is the path as it stands
    address = Address.parse(uri)
    return Path(address.key) if address.scheme == "file" else None


def store_of(uri: str) -> ObjectStore:
    """The store of an ``s3://`` address, whatever MOONFLOW_STORE names: a run may keep its own objects elsewhere."""
    return ObjectStore.from_env({**os.environ, "MOONFLOW_STORE": f"{S3}{Address.parse(uri).bucket}"})


@dataclass(frozen=True)
class ListedShards:
    """``model.data.source.ShardSource`` over objects that no manifest describes; shards are named by their keys below
    ``prefix``, an ``s3://`` address that ends with a slash."""

    prefix: str

    def open(self, shard: str) -> BinaryIO:
        with disk_errors(tempfile.gettempdir()), tempfile.TemporaryDirectory(prefix="moonflow-") as folder:
            path = Path(folder) / "shard.tar"
            try:
                store_of(self.prefix).download(f"{self.prefix}{shard}", path)
            except NotInStore as error:
                raise BrokenShard(str(error)) from None
            return path.open("rb")  # readable until it is closed, though its name goes now

    def soon(self, shard: str) -> None:
        """Nothing is brought ahead: such shards are read once."""
