"""A user's own data: WebDataset shards in our sample format, or a folder of images with texts (source: ours).

Texts stand beside the images (``cat.png`` and ``cat.txt``) or in ``metadata.jsonl`` (a line per image: ``file_name``
and ``text``, as Hugging Face's imagefolder has it).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from model.data.sample import ABILITIES, MODALITIES, Sample
from model.data.shards import Shard
from model.data.source import LocalShards, ShardSource
from model.data.tokenize import TokenizedSample, tokenize
from model.errors import MoonflowError
from model.image import ImageConfig
from model.tokenizer import Tokenizer

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}
METADATA = "metadata.jsonl"
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
        if not match or weight <= 0:
            raise MoonflowError(f"source {entry!r}: write name=URI or name:weight=URI, the name in a-z, 0-9 and _")
        if match[1] in {one.name for one in found}:
            raise MoonflowError(f"source {entry!r}: the name {match[1]!r} is taken; choose another")
        found.append(Named(match[1], match[3], weight))
    return found


class Part(Protocol):
    """A piece of a source that one process reads: a shard, or some images."""

    def samples(self) -> Iterator[Sample | str]:
        """Its samples; a line of text for each that is none, with its name and what to do."""
        ...


@dataclass(frozen=True)
class ShardPart:
    source: ShardSource
    shard: str

    def samples(self) -> Iterator[Sample | str]:
        try:
            shard = Shard(self.source.open(self.shard), self.shard)
        except MoonflowError as error:
            yield str(error)
            return
        for number in range(len(shard)):
            try:
                yield shard[number]
            except MoonflowError as error:
                yield str(error)
        if shard.damage is not None:
            yield str(shard.damage)
        shard.close()


@dataclass(frozen=True)
class PairsPart:
    """Images below a folder, each with its text, or with what is wrong in place of one."""

    folder: Path
    pairs: tuple[tuple[str, str, str], ...]  # file name, text, problem

    def samples(self) -> Iterator[Sample | str]:
        for name, text, problem in self.pairs:
            path = self.folder / name
            if problem:
                yield f"{path}: {problem}"
                continue
            try:
                content = path.read_bytes()
            except OSError as error:
                yield f"{path} cannot be read ({error.strerror}): mend it or take it out"
                continue
            extension = path.suffix[1:].lower()
            segments: list[dict[str, Any]] = [
                {"type": "image", "media": extension},
                {"type": "text", "text": text, "loss": True},
            ]
            yield Sample(name, "pairs", "knowledge", "image", name, segments=segments, media={extension: content})


def local_parts(folder: Path) -> list[Part]:
    """What lies in a folder: all its shards, or else its images.

    Raises:
        MoonflowError: no such folder, or neither is in it.
    """
    if not folder.is_dir():
        raise MoonflowError(f"{folder} is no folder: name one with .tar shards or with images and texts, or s3://...")
    if shards := sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.tar")):
        return [ShardPart(LocalShards(folder), shard) for shard in shards]
    pairs = list(_listed(folder) if (folder / METADATA).is_file() else _beside(folder))
    if not pairs:
        raise MoonflowError(
            f"{folder} holds no .tar shards and no images ({', '.join(sorted(IMAGES))}): "
            f"put x.txt beside each x.png, or write {METADATA}"
        )
    return [PairsPart(folder, tuple(pairs[start : start + PAIRS])) for start in range(0, len(pairs), PAIRS)]


def check(sample: Sample, tokenizer: Tokenizer, image_config: ImageConfig) -> tuple[TokenizedSample, int]:
    """The sample with its media decoded, and how many of its tokens are media pads.

    Raises:
        MoonflowError: naming the sample, when a trainer could not use it.
    """
    for name, value, known in (
        ("ability", sample.ability, ABILITIES),
        ("modality", sample.modality, MODALITIES),
    ):
        if value not in known:
            raise MoonflowError(f"sample {sample.key}: {name} {value!r} is none of {', '.join(known)}: mend its json")
    tokenized = tokenize(sample, tokenizer, image_config)
    if not tokenized.loss_mask[1:].any():
        raise MoonflowError(f'sample {sample.key}: no token of it is trained on; mark a text with "loss": true')
    return tokenized, int((tokenized.input_ids == tokenizer.media_pad_id).sum())


def renamed(sample: Sample, name: str, part: int, number: int) -> Sample:
    """The sample as a member of the family ``name``, under a key that nothing else has."""
    return replace(sample, key=f"{name}-{part:05d}-{number:05d}", family=name, source=f"{name}/{sample.source}")


def _beside(folder: Path) -> Iterator[tuple[str, str, str]]:
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES):
        name, beside = path.relative_to(folder).as_posix(), path.with_suffix(".txt")
        try:
            text = beside.read_text().strip()
            problem = "" if text else f"{beside.name} is empty: write what the image shows"
        except FileNotFoundError:
            text, problem = "", f"there is no {beside.name} beside it: write what the image shows"
        except (OSError, UnicodeDecodeError) as error:
            text, problem = "", f"{beside.name} cannot be read ({error}): save it as UTF-8"
        yield name, text, problem


def _listed(folder: Path) -> Iterator[tuple[str, str, str]]:
    try:
        lines = (folder / METADATA).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MoonflowError(f"{folder / METADATA} cannot be read ({error}): save it as UTF-8") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = row["file_name"], row["text"].strip()
        except (ValueError, KeyError, TypeError, AttributeError):
            yield METADATA, "", f'line {number} is no JSON object with "file_name" and "text"'
            continue
        inside = (folder / name).resolve().is_relative_to(folder.resolve())
        problem = "" if text else f"line {number} of {METADATA} has an empty text: write what the image shows"
        yield name, text, problem if inside else f"line {number} of {METADATA} names a file outside the folder"
