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

from model.data.sample import Sample
from model.data.source import BrokenShard, LocalShards
from model.errors import MoonflowError

JSON_FIELDS = [field.name for field in fields(Sample) if field.name != "media"]
REQUIRED = ("key", "family", "ability", "modality", "source")


def write_shard(samples: Iterable[Sample]) -> bytes:
    """The bytes of a tar with every sample's json and media; the media's file names follow from the key.

    Raises:
        MoonflowError: a key that cannot be a file's stem, or one that occurs twice.
    """
    buffer, keys = io.BytesIO(), set[str]()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            if not sample.key or "." in sample.key or "/" in sample.key or sample.key in keys:
                raise MoonflowError(f"sample key {sample.key!r} is empty, taken, or has a dot or slash: rename it")
            keys.add(sample.key)
            values = {name: getattr(sample, name) for name in JSON_FIELDS}
            record = {name: value for name, value in values.items() if value not in ("", [], {}, None)}
            record["media"] = sorted(sample.media)
            members = {"json": json.dumps(record, ensure_ascii=False).encode(), **sample.media}
            for extension in ["json", *record["media"]]:
                info = tarfile.TarInfo(f"{sample.key}.{extension}")  # its defaults: time 0, owner 0, mode 644
                info.size = len(members[extension])
                tar.addfile(info, io.BytesIO(members[extension]))
    return buffer.getvalue()


class Shard:
    """A shard's samples by their number; only the members asked for are read.

    A sample's members stand together, its json before or after its media. What lies before a damaged place can be read;
    ``damage`` says what is wrong with the rest.

    Args:
        stream: seekable; closed with the shard.
        label: the shard's name in messages.
    """

    def __init__(self, stream: BinaryIO, label: str) -> None:
        self._stream, self._label = stream, label
        self._samples: list[tuple[str, dict[str, tuple[int, int]]]] = []
        self.damage: BrokenShard | None = None
        try:
            self._scan()
        except BrokenShard as damage:
            self.damage = damage

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
                f"shard {self._label} has {len(self._samples)} samples, not {number + 1}: run prepare_data again"
            )
        key, members = self._samples[number]
        return _sample(key, {extension: self._read(*place) for extension, place in members.items()}, self._label)

    def close(self) -> None:
        self._stream.close()

    def _read(self, offset: int, size: int) -> bytes:
        self._stream.seek(offset)
        return self._stream.read(size)

    def _scan(self) -> None:
        """Find each regular file's place and group the files by their keys."""
        size, last, key = self._stream.seek(0, io.SEEK_END), "none", ""
        self._stream.seek(0)
        members: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(fileobj=self._stream, mode="r:") as tar:
                for info in tar:
                    last = info.name
                    end = info.offset_data + info.size
                    if end > size:
                        raise BrokenShard(
                            f"shard {self._label}, member {last!r}: cut short by {end - size} bytes; "
                            "fetch or make it again"
                        )
                    if not info.isfile():
                        continue
                    folder, slash, base = info.name.rpartition("/")
                    stem, _, extension = base.partition(".")  # webdataset: the key ends at the first dot
                    if key and folder + slash + stem != key:
                        self._samples.append((key, members))
                        members = {}
                    key = folder + slash + stem
                    members[extension] = (info.offset_data, info.size)
                # tarfile takes a broken header, or none, for the end of the archive: samples would vanish silently.
                closing = self._read(tar.offset, tarfile.BLOCKSIZE)
                if len(closing) < tarfile.BLOCKSIZE or any(closing):
                    raise tarfile.ReadError("broken header or missing end of archive")
        except tarfile.TarError as error:
            raise BrokenShard(f"shard {self._label}, after member {last!r}: {error}; fetch or make it again") from None
        if key:
            self._samples.append((key, members))


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


def _sample(key: str, members: dict[str, bytes], label: str) -> Sample:
    where = f"shard {label}, member '{key}.json'"
    if "json" not in members:
        raise MoonflowError(f"{where}: missing beside {sorted(members)}; make the shard again")
    media = {extension: content for extension, content in members.items() if extension != "json"}
    try:
        record: Any = json.loads(members["json"])
    except ValueError as error:
        raise MoonflowError(f"{where}: not JSON ({error}); make the shard again") from None
    if not isinstance(record, dict):
        raise MoonflowError(f"{where}: a sample must be a JSON object; see model/data/sample.py")
    absent = sorted(set(record.pop("media", ())) - set(media))
    unknown = sorted(set(record) - set(JSON_FIELDS))
    missing = [name for name in REQUIRED if name not in record]
    if absent or unknown or missing:
        raise MoonflowError(f"{where}: absent media {absent}, unknown fields {unknown}, missing fields {missing}; "
                            "see model/data/sample.py")  # fmt: skip
    return Sample(**record, media=media)
