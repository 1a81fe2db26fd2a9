"""`moonflow data check`: what lies at a URI, how many tokens it has, and what is wrong with it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from components.runtime.own_data import local_folder, parts_at, store_of
from components.runtime.shards import open_data
from components.runtime.store import NotInStore
from model.data.families.family import SPLITS
from model.data.folder import DataFolder
from model.data.own import Part, ShardPart, check
from model.errors import MoonflowError
from model.image import ImageConfig
from model.tokenizer import Tokenizer

SHOWN = 20  # problems on the screen; --json has all


@dataclass
class Tally:
    """Of one family and split; every token of a document that holds an image or a video counts as vision."""

    samples: int = 0
    text: int = 0
    vision: int = 0
    media: int = 0
    longest: int = 0


@dataclass
class Findings:
    """What ``examine`` saw; ``exact`` is whether a tokenizer counted (otherwise a byte of text counts as a token)."""

    exact: bool
    tallies: dict[str, Tally] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> str:
        tallies = {name: vars(tally) for name, tally in self.tallies.items()}
        return json.dumps({"exact": self.exact, "families": tallies, "problems": self.problems}, indent=1)

    def show(self, uri: str, console: Console) -> None:
        table = Table(title=uri)
        table.add_column("family")
        for name in ("samples", "text tokens", "vision tokens", "of them media", "longest"):
            table.add_column(name, justify="right")
        for name, tally in self.tallies.items():
            table.add_row(name, *(f"{value:,}" for value in vars(tally).values()))
        console.print(table)
        if not self.exact:
            console.print("Every byte of text counts as a token: --tokenizer names a folder with a tokenizer.")
        for problem in self.problems[:SHOWN]:
            console.print(f"problem: {problem}", markup=False, soft_wrap=True)
        if len(self.problems) > SHOWN:
            console.print(f"... and {len(self.problems) - SHOWN} more: --json lists all")
        console.print(f"problems: {len(self.problems) or 'none'}")


def examine(uri: str, tokenizer_folder: Path | None = None) -> Findings:
    """Read every sample at ``uri``: shards or prepare_data's output in a folder or at s3://, or images with texts.

    Raises:
        MoonflowError: nothing of use lies there, or it cannot be reached.
    """
    with tempfile.TemporaryDirectory(prefix="moonflow-") as cache:
        tokenizer = Tokenizer.load(tokenizer_folder) if tokenizer_folder is not None else None
        if (data := _prepared(uri, Path(cache))) is not None:
            tokenizer = tokenizer or data.tokenizer
            config, parts = data.image_config, _parts_of(data)
        else:
            config, parts = ImageConfig(), ((None, None, part) for part in parts_at(uri))
        findings = Findings(tokenizer is not None)
        for label, samples, part in parts:
            _count(findings, label, samples, part, tokenizer or Tokenizer.train([], 256), config)
        if not findings.tallies and not findings.problems:
            raise MoonflowError(f"{uri} holds no samples")
    return findings


def _prepared(uri: str, cache: Path) -> DataFolder | None:
    """prepare_data's output at ``uri``, if it is that."""
    if (folder := local_folder(uri)) is not None:
        return DataFolder(folder) if (folder / "index.json").is_file() else None
    try:
        return open_data(store_of(uri), uri, cache)
    except NotInStore:
        return None


def _parts_of(data: DataFolder) -> Iterator[tuple[str | None, int | None, Part]]:
    """(family and split, samples that the index names, part) of every shard."""
    for family in data.families():
        for split in SPLITS:
            for entry in data.index["families"][family].get(split, []):
                yield f"{family} {split}", entry["samples"], ShardPart(data.source, entry["shard"])


def _count(
    findings: Findings, label: str | None, samples: int | None, part: Part, tokenizer: Tokenizer, config: ImageConfig
) -> None:
    seen = 0
    for found in part.samples():
        seen += 1
        if isinstance(found, str):
            findings.problems.append(found)
            continue
        try:
            tokenized, media = check(found, tokenizer, config)
        except MoonflowError as error:
            findings.problems.append(str(error))
            continue
        tally = findings.tallies.setdefault(label or found.family, Tally())
        tokens = len(tokenized.input_ids)
        tally.samples += 1
        tally.longest = max(tally.longest, tokens)
        tally.media += media
        if media:
            tally.vision += tokens
        else:
            tally.text += tokens
    if samples is not None and seen != samples and isinstance(part, ShardPart):
        findings.problems.append(f"shard {part.shard}: index.json says {samples} samples, it has {seen}: make it again")
