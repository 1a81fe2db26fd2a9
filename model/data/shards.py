"""WebDataset tar shards: ``{key}.json`` beside ``{key}.png``, ``{key}.mp4``, ... (format: webdataset; fields: Sample).

The bytes of a shard are a function of its samples: ustar headers with time 0, members in sample order.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO

from model.data.members import MembersByKey
from model.data.record import read_record
from model.data.sample import Sample
from model.data.source import BrokenShard, LocalShards
from model.errors import MoonflowError

JSON_FIELDS = [field.name for field in fields(Sample) if field.name != "media"]


class ShardWriter:
    """A shard in memory; a sample that cannot be written leaves no trace in it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._keys: set[str] = set()

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, sample: Sample) -> None:
        """
        Raises:
            MoonflowError: a key that cannot be a file's stem, or one that occurs twice; a field that JSON cannot hold.
        """
        if not sample.key or "." in sample.key or "/" in sample.key or sample.key in self._keys:
            raise MoonflowError(f"sample key {sample.key!r} is empty, taken, or has a dot or slash: rename it")
        media = sorted(sample.media)
        members = {"json": encode_record(sample), **sample.media}
        parts = []
        for extension in ["json", *media]:
            info = tarfile.TarInfo(f"{sample.key}.{extension}")  # its defaults: time 0, owner 0, mode 644
            info.size = len(members[extension])
            padding = bytes(-info.size % tarfile.BLOCKSIZE)
            parts += [info.tobuf(tarfile.USTAR_FORMAT), members[extension], padding]
        self._parts += parts
        self._keys.add(sample.key)

    def content(self) -> bytes:
        """The bytes of the tar, with its end."""
        size = sum(map(len, self._parts))
        end = 2 * tarfile.BLOCKSIZE
        return b"".join([*self._parts, bytes(end + -(size + end) % tarfile.RECORDSIZE)])


def encode_record(sample: Sample) -> bytes:
    """The sample's json, without fields that are empty.

    Raises:
        MoonflowError: JSON cannot hold a field.
    """
    values = {name: getattr(sample, name) for name in JSON_FIELDS}
    record = {name: value for name, value in values.items() if value not in ("", [], {}, None)}
    record["media"] = sorted(sample.media)
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise MoonflowError(f"sample {sample.key}: JSON cannot hold a field of it ({error}): mend the field") from None


def write_shard(samples: Iterable[Sample]) -> bytes:
    """The bytes of a tar with every sample's json and media; the media's file names follow from the key.

    Raises:
        MoonflowError: as ``ShardWriter.add``.
    """
    writer = ShardWriter()
    for sample in samples:
        writer.add(sample)
    return writer.content()


class Shard:
    """A shard's samples by their number; only the members asked for are read.

    A sample's members stand together, its json before or after its media. What lies before a damaged place can be read;
    ``damage`` says what is wrong with the rest.

    Attributes:
        skipped: names of members that belong to no sample; of those beside a sample, once it was read.

    Args:
        stream: seekable; closed with the shard.
        label: the shard's name in messages.
    """

    def __init__(self, stream: BinaryIO, label: str) -> None:
        members = MembersByKey(stream, label)
        self._stream, self.label = stream, label
        self._samples, self.damage = members.samples, members.damage
        self.skipped = dict.fromkeys(members.skipped)

    @classmethod
    def lost(cls, damage: BrokenShard, label: str) -> Shard:
        """A shard of which nothing can be read."""
        shard = cls(io.BytesIO(bytes(2 * tarfile.BLOCKSIZE)), label)
        shard.damage = damage
        return shard

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> Sample:
        """
        Raises:
            MoonflowError: bad JSON or fields, absent media; names shard and member. ``damage``, if the sample lies
                behind it.
        """
        if number >= len(self._samples):
            raise self.damage or BrokenShard(
                f"shard {self.label} has {len(self._samples)} samples, not {number + 1}: run prepare_data again"
            )
        members = self._samples[number]
        if members.problem:
            raise MoonflowError(f"shard {self.label}: {members.problem}")
        where = f"shard {self.label}, member '{members.key}.json'"
        contents = {extension: self._read(*place) for extension, place in members.places.items()}
        sample, unused = _sample(contents, where)
        self.skipped.update((f"{members.key}.{extension}", None) for extension in unused)
        return sample

    def close(self) -> None:
        self._stream.close()

    def _read(self, offset: int, size: int) -> bytes:
        self._stream.seek(offset)
        return self._stream.read(size)


def read_shard(shard: bytes | Path) -> Iterator[Sample]:
    """The samples of a shard in order.

    Raises:
        MoonflowError: unreadable file, broken or cut-off tar, bad JSON or fields, absent media; names shard and member.
    """
    if isinstance(shard, bytes):
        opened = Shard(io.BytesIO(shard), "<bytes>")
    else:
        opened = Shard(LocalShards(shard.parent).open(shard.name), str(shard))
    try:
        for number in range(len(opened)):
            yield opened[number]
        if opened.damage is not None:
            raise opened.damage
    finally:
        opened.close()


def _sample(members: dict[str, bytes], where: str) -> tuple[Sample, set[str]]:
    """The sample, and the extensions beside it that neither its list of media nor its content names."""
    if "json" not in members:
        raise MoonflowError(f"{where}: missing beside {sorted(members)}; make the shard again")
    media = {extension: content for extension, content in members.items() if extension != "json"}
    record: Any = read_record(members["json"], where)
    listed = record.pop("media", None)
    if absent := sorted(set(listed or ()) - set(media)):
        raise MoonflowError(f"{where}: absent media {absent}; see model/data/sample.py")
    unused = set() if listed is None else set(media).difference(listed)
    return Sample(**record, media=media), unused and unused - set(_shown(record))


def _shown(record: dict[str, Any]) -> Iterator[str]:
    """The media that a record's segments and messages show."""
    contents = [record.get("segments", []), *(message.get("content") for message in record.get("messages", []))]
    for content in contents:
        if isinstance(content, list):
            yield from (part["media"] for part in content if "media" in part)
