"""A user's data at a URI: a local folder or file, or stored shards; and which samples can be used (source: ours)."""

from __future__ import annotations

import os
import posixpath
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO

from components.runtime.store.address import Address, is_address
from components.runtime.store.object_store import NotInStore, ObjectStore, disk_errors
from components.runtime.store.open_store import open_source
from model.boundary.errors import MoonflowError
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.samples.problems import Note, Problem, attempt, one_line
from model.data.samples.sample import Sample
from model.data.samples.shard_source import BrokenShard
from model.data.user.json_lines import LINES, Lines, UserFiles
from model.data.user.listing import LARGEST_FILE, ListedFile, unused
from model.data.user.user_data import CheckedSample, Part, check, conversations, local_parts, shard_parts
from model.rl.task_check import check_task


def parts_at(uri: str) -> list[Part]:
    """The parts of a source. MoonflowError if there is nothing to use, or the store cannot be reached."""
    if (path := local_folder(uri)) is not None:
        return local_parts(path)
    if uri.lower().endswith(LINES) and store_of(uri).exists(uri):
        folder, _, name = uri.rpartition("/")
        return [Lines(StoredFiles(f"{folder}/"), name, 0)]
    prefix = uri if uri.endswith("/") else f"{uri}/"
    entries = [ListedFile(key.removeprefix(prefix)) for key in store_of(uri).list(prefix) if not key.endswith("/")]
    if parts := shard_parts(ListedShards(prefix), entries, uri):
        return parts
    if parts := conversations(uri, entries, partial(_whole_files, StoredFiles(prefix))):
        return parts
    only = f"in object stores, only shards and {LINES} files are read"
    found = "".join(f"; {note.line}" for note in unused(uri, entries, only))
    raise MoonflowError(
        f"{uri} holds no .tar shards and no {LINES} files: check the address, and how the files' names end{found}"
    )


def _whole_files(files: UserFiles, entries: Sequence[ListedFile]) -> Iterator[Lines | Problem]:
    """A part for each file: one that lies in a store is fetched as a whole."""
    for number, entry in enumerate(entries):
        yield Lines(files, entry.name, number)


def checked(part: Part, tokenizer: Tokenizer, image_config: ImageConfig) -> Iterator[CheckedSample | Problem | Note]:
    """Everything in a part, with each sample read, decoded and tokenised once. Never raises for a record."""
    for found in part.samples():
        if not isinstance(found, Sample):
            yield found
            continue
        result = attempt(f"sample {found.key}", _checked, found, tokenizer, image_config)
        if isinstance(result, Problem):
            told = f"{part.where}: {result.line}"
            if isinstance(part, Lines):  # the file and the line say more than the key
                fault = result.line.removeprefix(f"sample {found.key} of {found.family}: ")
                told = f"{part.place(found)}: {fault.removeprefix(f'sample {found.key}: ')}"
            result = Problem(one_line(told))
        yield result


def _checked(sample: Sample, tokenizer: Tokenizer, image_config: ImageConfig) -> CheckedSample:
    check_task(sample)
    return check(sample, tokenizer, image_config)


def local_folder(uri: str) -> Path | None:
    """The folder, or the file, that a path or a ``file://`` address names; None for an ``s3://`` address."""
    if not is_address(uri):
        return Path(os.path.expanduser(uri))  # for an unknown user, the path stays as it is
    address = Address.parse(uri)
    return Path(address.key) if address.scheme == "file" else None


def store_of(uri: str) -> ObjectStore:
    """The store of an ``s3://`` address, whatever MOONFLOW_STORE names: a run may keep its own objects elsewhere."""
    return _source(Address.parse(uri).bucket, tuple(os.environ.items()))


@lru_cache(maxsize=8)  # a source may have many thousands of images, and a client takes longer to make than one to fetch
def _source(bucket: str, environment: tuple[tuple[str, str], ...]) -> ObjectStore:
    """``environment`` holds the settings that the store is opened with: others open another one."""
    return open_source(bucket)


@dataclass(frozen=True)
class ListedShards:
    """``model.data.samples.shard_source.ShardSource`` over objects that no manifest describes.

    A shard's name is its key below ``prefix``, an ``s3://`` address that ends with a slash.
    """

    prefix: str

    def open(self, shard: str) -> BinaryIO:
        with disk_errors(tempfile.gettempdir()), tempfile.TemporaryDirectory(prefix="moonflow-") as folder:
            path = Path(folder) / "shard.tar"
            try:
                store_of(self.prefix).download(f"{self.prefix}{shard}", path)
            except NotInStore as error:
                raise BrokenShard(str(error)) from None
            return path.open("rb")  # it can be read until it is closed, although its name is removed now

    def prefetch(self, shard: str) -> None:
        """Nothing to do: such shards are read once."""


@dataclass(frozen=True)
class StoredFiles:
    """``model.data.user.json_lines.UserFiles`` over objects: conversations and their images.

    A file's name is its key below ``prefix``, an ``s3://`` address that ends with a slash.
    """

    prefix: str

    def place(self, name: str) -> str:
        return f"{self.prefix}{name}"

    def open(self, name: str) -> BinaryIO:
        return ListedShards(self.prefix).open(name)

    def image(self, path: str, shown_in: str) -> bytes:
        told = f"image {path[:200]!r}"
        name = posixpath.normpath(posixpath.join(posixpath.dirname(shown_in), path))
        if not path or path.startswith("/") or name.split("/")[0] in ("..", "."):
            raise MoonflowError(f"{told} is outside of {self.prefix}: put it there, and write its path from the file")
        store, key = store_of(self.prefix), f"{self.prefix}{name}"
        size = store.size(key)
        if size is None or size > LARGEST_FILE:
            fault = "is not there" if size is None else f"has more than {LARGEST_FILE >> 20} MiB"
            raise MoonflowError(f"{told} {fault}: put it next to the file, or take the line out")
        return store.get(key)
