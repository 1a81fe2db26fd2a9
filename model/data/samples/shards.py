"""WebDataset tar shards: ``{key}.json`` next to ``{key}.png``, ``{key}.mp4``, ... (format: webdataset; fields: Sample).

The bytes of a shard are a function of its samples: ustar headers with time 0, members in sample order.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any, BinaryIO

from model.boundary.errors import MoonflowError
from model.data.samples.record import read_record
from model.data.samples.sample import Sample
from model.data.samples.shard_source import BrokenShard
from model.data.samples.tar_members import MembersByKey

JSON_FIELDS = [field.name for field in fields(Sample) if field.name != "media"]


class ShardWriter:
    """Builds a shard in memory; a sample that cannot be written leaves no trace in it.

    Attributes:
        size: bytes of the samples.
    """

    def __init__(self) -> None:
        self.size = 0
        self._parts: list[bytes] = []
        self._keys: set[str] = set()

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, sample: Sample) -> None:
        """Append a sample.

        Raises:
            MoonflowError: a key that cannot be a file's stem, or that occurs twice; a field that JSON cannot hold.
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
        self.size += sum(map(len, parts))

    def content(self) -> bytes:
        """The bytes of the tar, with the end of the archive."""
        end = 2 * tarfile.BLOCKSIZE
        return b"".join([*self._parts, bytes(end + -(self.size + end) % tarfile.RECORDSIZE)])


def encode_record(sample: Sample) -> bytes:
    """The sample's JSON, without empty fields.

    Raises:
        MoonflowError: JSON cannot hold a field.
    """
    values = {name: getattr(sample, name) for name in JSON_FIELDS}
    record = {name: value for name, value in values.items() if value not in ("", [], {}, None)}
    record["media"] = sorted(sample.media)
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise MoonflowError(f"sample {sample.key}: JSON cannot hold a field of it ({error}): fix the field") from None


def write_shard(samples: Iterable[Sample]) -> bytes:
    """The bytes of a tar with the JSON and the media of every sample; their file names begin with its key.

    Raises:
        MoonflowError: as ``ShardWriter.add``.
    """
    writer = ShardWriter()
    for sample in samples:
        writer.add(sample)
    return writer.content()


class Shard:
    """The samples of a shard by their number; only the members of a sample that is asked for are read.

    The members of a sample follow one another, its JSON before or after its media. Samples before a damaged part can be
    read; ``damage`` says what is wrong with the rest.

    Attributes:
        skipped: names of members that no sample uses. Files that have a sample's key but are not used by it are added
            when the sample is read.

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
        """A shard of which no sample can be read."""
        shard = cls(io.BytesIO(bytes(2 * tarfile.BLOCKSIZE)), label)
        shard.damage = damage
        return shard

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> Sample:
        """Read one sample.

        Raises:
            MoonflowError: bad JSON or fields, or missing media; names shard and member.
            BrokenShard: ``damage``, if the sample comes after it.
        """
        if number >= len(self._samples):
            raise self.damage or BrokenShard(
                f"shard {self.label} has {len(self._samples)} samples, not {number + 1}: run prepare_data again"
            )
        members = self._samples[number]
        if members.problem:
            raise MoonflowError(f"shard {self.label}: {members.problem}")
        where = f"shard {self.label}, member '{members.key}.json'"
        contents = {extension: self._read(*place) for extension, place in members.byte_ranges.items()}
        sample, unused = _sample(contents, where)
        self.skipped.update((f"{members.key}.{extension}", None) for extension in unused)
        return sample

    def close(self) -> None:
        self._stream.close()

    def _read(self, offset: int, size: int) -> bytes:
        self._stream.seek(offset)
        return self._stream.read(size)


def _sample(members: dict[str, bytes], where: str) -> tuple[Sample, set[str]]:
    """The sample, and the extensions of its key that neither its list of media nor its content names."""
    if "json" not in members:
        raise MoonflowError(f"{where}: missing next to {sorted(members)}; make the shard again")
    media = {extension: content for extension, content in members.items() if extension != "json"}
    record: Any = read_record(members["json"], where)
    listed = record.pop("media", None)
    if absent := sorted(set(listed or ()) - set(media)):
        raise MoonflowError(f"{where}: absent media {absent}; see model/data/samples/sample.py")
    unused = set() if listed is None else set(media).difference(listed)
    return Sample(**record, media=media), unused and unused - set(_shown(record))


def _shown(record: dict[str, Any]) -> Iterator[str]:
    """The names of the media in a record's segments and messages."""
    contents = [record.get("segments", []), *(message.get("content") for message in record.get("messages", []))]
    for content in contents:
        if isinstance(content, list):
            yield from (part["media"] for part in content if "media" in part)
