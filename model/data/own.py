"""A user's own data: WebDataset shards in our sample format, or a folder of images with texts (source: ours)."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from model.data.image_folder import IMAGES, METADATA, Pairs, pairs
from model.data.problems import Note, Problem, attempt, one_line, some
from model.data.sample import Sample
from model.data.shards import Shard, encode_record
from model.data.source import LocalShards, ShardSource
from model.data.tokenize import tokenize
from model.data.walk import Entry, unused, walk
from model.errors import MoonflowError
from model.image import ImageConfig
from model.tokenizer import Tokenizer

SHARD = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
PAIRS = 1_000  # images in one part


@dataclass(frozen=True)
class Named:
    """A source as a parameter names it: the family's name, where it lies, its weight beside the built-in families."""

    name: str
    uri: str
    weight: float = 1.0


def parse_sources(text: str) -> list[Named]:
    """``name=URI`` or ``name:weight=URI``, separated by commas. MoonflowError names the entry that is none."""
    found: list[Named] = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"([a-z][a-z0-9_]*)(?::([0-9.]{1,9}))?=(\S.*)", entry)
        try:
            weight = float(match[2] or 1) if match else 0.0
        except ValueError:
            weight = 0.0
        if not match or not 0 < weight < math.inf:
            raise MoonflowError(f"source {entry!r}: write name=URI or name:weight=URI, the name in a-z, 0-9 and _")
        if match[1] in {one.name for one in found}:
            raise MoonflowError(f"source {entry!r}: the name {match[1]!r} is taken; choose another")
        found.append(Named(match[1], match[3], weight))
    return found


class Part(Protocol):
    """A piece of a source that one process reads: a shard, or some images."""

    @property
    def where(self) -> str:
        """Names it in messages."""
        ...

    def samples(self) -> Iterator[Sample | Problem | Note]:
        """Its samples in order; what is wrong in place of one; and what was not used. Never raises for a record."""
        ...


@dataclass(frozen=True)
class ShardPart:
    source: ShardSource
    shard: str

    @property
    def where(self) -> str:
        return f"shard {self.shard}"

    def samples(self) -> Iterator[Sample | Problem | Note]:
        opened = attempt(self.where, self._opened)
        if isinstance(opened, Problem):
            yield opened
            return
        with contextlib.closing(opened):
            for number in range(len(opened)):
                yield attempt(f"{self.where}, sample {number}", opened.__getitem__, number)
            if opened.damage is not None:
                yield Problem(one_line(str(opened.damage)))
            if opened.skipped:
                count = f"{len(opened.skipped)} members belong" if len(opened.skipped) > 1 else "1 member belongs"
                yield Note(one_line(f"{self.where}: {count} to no sample: {some([*opened.skipped])}"))

    def _opened(self) -> Shard:
        return Shard(self.source.open(self.shard), self.shard)


@dataclass(frozen=True)
class Remarks:
    """What there is to say of files that are no part."""

    where: str
    found: tuple[Problem | Note, ...]

    def samples(self) -> Iterator[Sample | Problem | Note]:
        yield from self.found


def local_parts(folder: Path) -> list[Part]:
    """What lies in a folder: all its shards, or else its images.

    Raises:
        MoonflowError: no such folder, or neither is in it.
    """
    if not os.path.isdir(folder):
        name = one_line(str(folder))
        raise MoonflowError(f"{name} is no folder: name one with .tar shards or with images and texts, or s3://...")
    entries = walk(folder, {SHARD, *IMAGES})
    if parts := shard_parts(LocalShards(folder), entries, str(folder)):
        return parts
    found = list(pairs(folder, entries))
    if all(isinstance(one, Note) for one in found):
        seen = "".join(f"; {one.line}" for one in found if isinstance(one, Note))
        raise MoonflowError(
            f"{one_line(str(folder))} holds no .tar shards and no images ({', '.join(sorted(IMAGES))}): "
            f"put x.txt beside each x.png, or write {METADATA}{seen}"
        )
    return [Pairs(folder, tuple(found[start : start + PAIRS])) for start in range(0, len(found), PAIRS)]


def shard_parts(source: ShardSource, entries: Sequence[Entry], where: str) -> list[Part]:
    """The shards among files, then a word on the other files; nothing if there is no shard.

    Args:
        where: the folder or address, for messages.
    """
    shards, compressed, bad, others, hidden = (list[Entry]() for _ in range(5))
    for entry in entries:
        if entry.is_system_file:
            hidden.append(entry)
        elif entry.hides or (entry.extension == SHARD and entry.fault):
            bad.append(entry)
        elif entry.extension == SHARD:
            shards.append(entry)
        else:
            (compressed if entry.name.lower().endswith(COMPRESSED) else others).append(entry)
    if not shards and not compressed and not any(entry.extension == SHARD for entry in bad):
        return []
    remarks: list[Problem | Note] = [entry.problem(where) for entry in bad]
    remarks += [Problem(one_line(f"{where}/{entry.name} is compressed: decompress it to .tar")) for entry in compressed]
    remarks += unused(where, others, "beside shards, only shards are read")
    remarks += unused(where, hidden, "hidden, or a system's own")
    parts: list[Part] = [ShardPart(source, entry.name) for entry in shards]
    return [*parts, Remarks(where, tuple(remarks))] if remarks else parts


@dataclass(frozen=True)
class Checked:
    """A sample that a trainer can use.

    Attributes:
        tokens: of the whole sample.
        media: how many of them are media pads.
    """

    sample: Sample
    tokens: int
    media: int


def check(sample: Sample, tokenizer: Tokenizer, image_config: ImageConfig) -> Checked:
    """The sample's size in tokens, with its media decoded.

    Raises:
        MoonflowError: naming the sample, when a trainer could not use it.
    """
    tokenized = tokenize(sample, tokenizer, image_config)
    if not tokenized.loss_mask[1:].any():
        raise MoonflowError(f'sample {sample.key}: no token of it is trained on; mark a text with "loss": true')
    encode_record(sample)
    media = int((tokenized.input_ids == tokenizer.media_pad_id).sum())
    return Checked(sample, len(tokenized.input_ids), media)


def renamed(sample: Sample, name: str, part: int, number: int) -> Sample:
    """The sample as a member of the family ``name``, under a key that nothing else has."""
    return replace(sample, key=f"{name}-{part:05d}-{number:05d}", family=name, source=f"{name}/{sample.source}")
