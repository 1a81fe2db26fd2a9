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
from typing import Any

from model.data.sample import Sample
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


def read_shard(shard: bytes | Path) -> Iterator[Sample]:
    """The samples of a shard in order; a sample's members stand together, its json before or after its media.

    Raises:
        MoonflowError: unreadable file, broken or cut-off tar, bad JSON or fields, absent media; names shard and member.
    """
    label = "<bytes>" if isinstance(shard, bytes) else str(shard)
    key, members = "", dict[str, bytes]()
    for name, content in _members(shard if isinstance(shard, bytes) else _read(shard), label):
        folder, slash, base = name.rpartition("/")
        stem, _, extension = base.partition(".")  # webdataset: the key ends at the first dot
        if key and folder + slash + stem != key:
            yield _sample(key, members, label)
            members = {}
        key = folder + slash + stem
        members[extension] = content
    if key:
        yield _sample(key, members, label)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MoonflowError(f"shard {path} cannot be read ({error.strerror}): run prepare_data again") from None


def _members(data: bytes, label: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each regular file."""
    last = "none"
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for info in tar:
                last = info.name
                end = info.offset_data + info.size
                if end > len(data):
                    raise MoonflowError(
                        f"shard {label}, member {last!r}: cut short by {end - len(data)} bytes; fetch or make it again"
                    )
                if info.isfile():
                    yield info.name, data[info.offset_data : end]
            # tarfile takes a broken header, or none, for the end of the archive: samples would vanish silently.
            closing = data[tar.offset : tar.offset + tarfile.BLOCKSIZE]
            if len(closing) < tarfile.BLOCKSIZE or any(closing):
                raise tarfile.ReadError("broken header or missing end of archive")
    except tarfile.TarError as error:
        raise MoonflowError(f"shard {label}, after member {last!r}: {error}; fetch or make it again") from None


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
