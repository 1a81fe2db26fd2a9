"""A user's data: shards in our sample format, a folder of images with texts, or conversations (source: ours)."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from model.boundary.errors import MoonflowError
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.samples.problems import Note, Problem, attempt, one_line, some
from model.data.samples.sample import Sample
from model.data.samples.shard_source import LocalShards, ShardSource
from model.data.samples.shards import Shard, encode_record
from model.data.samples.tokenize import tokenize
from model.data.user.image_folder import IMAGES, METADATA, Pairs, pairs
from model.data.user.json_lines import LINES, Lines, LocalFiles, line_parts
from model.data.user.listing import ListedFile, list_files, unused

SHARD = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
COMPRESSED_LINES = tuple(f"{LINES}{packed}" for packed in (".gz", ".bz2", ".xz", ".zst", ".zip"))
PAIRS = 1_000  # images in one part
WHAT = f".tar shards, with {LINES} files of conversations, or with images and texts"


@dataclass(frozen=True)
class UserSource:
    """A source of user data, as the parameter ``sources`` gives it.

    Attributes:
        name: of the family that it becomes.
        weight: in the mixtures of pre-training, where the built-in families have theirs.
    """

    name: str
    uri: str
    weight: float = 1.0


def parse_sources(text: str) -> list[UserSource]:
    """The sources in ``name=URI`` or ``name:weight=URI``, separated by commas. MoonflowError names a wrong one."""
    found: list[UserSource] = []
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
        found.append(UserSource(match[1], match[3], weight))
    return found


class Part(Protocol):
    """A part of a source that one process reads: a shard, some of the images, or some lines of a file."""

    @property
    def where(self) -> str:
        """The part's name in messages."""
        ...

    def samples(self) -> Iterator[Sample | Problem | Note]:
        """Its samples in order, a problem in place of each bad one, and notes. Never raises for a record."""
        ...


@dataclass(frozen=True)
class ShardPart:
    """A shard of a source, as a ``Part``."""

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
    """Problems and notes on files that belong to no other part."""

    where: str
    found: tuple[Problem | Note, ...]

    def samples(self) -> Iterator[Sample | Problem | Note]:
        yield from self.found


def local_parts(path: Path) -> list[Part]:
    """The parts of a folder: all its shards, or else its conversations, or else its images. Or those of one file of
    conversations.

    Raises:
        MoonflowError: there is nothing of that name, or it holds none of these.
    """
    if os.path.isfile(path):
        if path.suffix.lower() != LINES:
            told = f"is a file, but no {LINES} file: name one of conversations, or a folder"
            raise MoonflowError(f"{one_line(str(path))} {told}")
        return conversations(str(path.parent), [ListedFile(path.name)], partial(line_parts, LocalFiles(path.parent)))
    if not os.path.isdir(path):
        raise MoonflowError(
            f"there is no folder or file {one_line(str(path))}: name a folder with {WHAT}, a {LINES} file, or s3://..."
        )
    entries = list_files(path, {SHARD, LINES, *IMAGES})
    if parts := shard_parts(LocalShards(path), entries, str(path)):
        return parts
    if parts := conversations(str(path), entries, partial(line_parts, LocalFiles(path))):
        return parts
    found = list(pairs(path, entries))
    if all(isinstance(one, Note) for one in found):
        seen = "".join(f"; {one.line}" for one in found if isinstance(one, Note))
        raise MoonflowError(
            f"{one_line(str(path))} holds no .tar shards, no {LINES} files and no images "
            f"({', '.join(sorted(IMAGES))}): put x.txt next to each x.png, or write {METADATA}{seen}"
        )
    return [Pairs(path, tuple(found[start : start + PAIRS])) for start in range(0, len(found), PAIRS)]


def conversations(
    where: str, entries: Sequence[ListedFile], parts_of: Callable[[Sequence[ListedFile]], Iterator[Lines | Problem]]
) -> list[Part]:
    """The parts of the files of conversations, then the problems and notes on the other files; nothing if there is no
    such file, or if there are images with a metadata.jsonl.

    Args:
        where: the folder or address, for messages.
        parts_of: makes the parts of these files.
    """
    seen = [entry for entry in entries if not entry.is_system_file]
    files = [e for e in seen if e.extension == LINES and os.path.basename(e.name) != METADATA]
    compressed = [entry for entry in seen if entry.name.lower().endswith(COMPRESSED_LINES)]
    if not [*files, *compressed] or any(entry.name == METADATA for entry in seen):
        return []
    parts: list[Part] = []
    remarks: list[Problem | Note] = []
    for one in parts_of(files):
        if isinstance(one, Problem):
            remarks.append(one)
        else:
            parts.append(one)
    remarks += [Problem(one_line(f"{where}/{entry.name} is compressed: decompress it")) for entry in compressed]
    used = {entry.name for entry in [*files, *compressed]}
    rest = [entry for entry in seen if entry.name not in used]
    remarks += [entry.problem(where) for entry in rest if entry.hides]
    others = [entry for entry in rest if not entry.hides and entry.extension not in IMAGES]
    remarks += unused(where, others, f"next to {LINES} files, only images are read, if a line names them")
    return [*parts, Remarks(where, tuple(remarks))] if remarks else parts


def shard_parts(source: ShardSource, entries: Sequence[ListedFile], where: str) -> list[Part]:
    """The shards among files, then the problems and notes on the other files; nothing if there is no shard.

    Args:
        where: the folder or address, for messages.
    """
    shards, compressed, bad, others, hidden = (list[ListedFile]() for _ in range(5))
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
    remarks += unused(where, others, "next to shards, only shards are read")
    remarks += unused(where, hidden, "hidden, or a file of the system")
    parts: list[Part] = [ShardPart(source, entry.name) for entry in shards]
    return [*parts, Remarks(where, tuple(remarks))] if remarks else parts


@dataclass(frozen=True)
class CheckedSample:
    """A sample that a trainer can use.

    Attributes:
        tokens: of the whole sample.
        media: how many of these are media pads.
        targets: how many of these the loss covers.
    """

    sample: Sample
    tokens: int
    media: int
    targets: int


def check(sample: Sample, tokenizer: Tokenizer, image_config: ImageConfig) -> CheckedSample:
    """The sample with its size in tokens, after its media were decoded.

    Raises:
        MoonflowError: a trainer could not use the sample; names it.
    """
    tokenized = tokenize(sample, tokenizer, image_config)
    targets = int(tokenized.loss_mask[1:].sum())
    if not targets:
        raise MoonflowError(f'sample {sample.key}: no token of it is trained on; mark a text with "loss": true')
    encode_record(sample)
    media = int((tokenized.input_ids == tokenizer.media_pad_id).sum())
    return CheckedSample(sample, len(tokenized.input_ids), media, targets)


def renamed(sample: Sample, name: str, part: int, number: int) -> Sample:
    """The sample as one of the family ``name``, under a key that no other sample has."""
    return replace(sample, key=f"{name}-{part:05d}-{number:05d}", family=name, source=f"{name}/{sample.source}")


def line_of(key: str, files: Sequence[str]) -> str:
    """Where a sample comes from, by its key: file and line of a conversation, or else the key itself.

    Args:
        files: of the source, in the order of their numbers; none, if it does not hold conversations.
    """
    found = re.fullmatch(r".*-(\d+)-(\d+)", key)
    if not found or int(found[1]) >= len(files):
        return key
    return f"{files[int(found[1])]}, line {int(found[2])}"
