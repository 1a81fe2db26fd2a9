"""`moonflow data check`: which samples a URI holds, how many tokens they have, and what is wrong with them."""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from components.runtime.datasets.shards import open_data
from components.runtime.datasets.user_data import checked, local_folder, parts_at, store_of
from components.runtime.store.object_store import NotInStore
from model.boundary.errors import MoonflowError
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.batches.folder import DataFolder
from model.data.families.family import SPLITS
from model.data.samples.problems import MAX_BROKEN, Note, Problem, one_line
from model.data.user.json_lines import Lines
from model.data.user.user_data import CheckedSample, Part, ShardPart

SHOWN = 20  # problems, and notes, on the screen; --json has all
COLUMNS = {  # heading -> figure
    "samples": "samples", "text tokens": "text", "vision tokens": "vision", "of them media": "media",
    "longest": "longest",
}  # fmt: skip


@dataclass
class Tally:
    """The counts of one family and split.

    Attributes:
        text, vision: tokens; every token of a sample with an image or a video counts as vision.
        media: tokens that stand for images and videos. files: these images and videos.
        targets: tokens that the loss covers.
    """

    samples: int = 0
    text: int = 0
    vision: int = 0
    media: int = 0
    files: int = 0
    targets: int = 0
    lengths: array[int] = field(default_factory=lambda: array("I"))

    @property
    def longest(self) -> int:
        return max(self.lengths)

    def figures(self) -> dict[str, int]:
        """All counts, and the tokens of the median and of the longest sample."""
        counts = {name: value for name, value in vars(self).items() if name != "lengths"}
        return {**counts, "median": sorted(self.lengths)[len(self.lengths) // 2], "longest": self.longest}

    def add(self, found: CheckedSample) -> None:
        self.samples += 1
        self.lengths.append(found.tokens)
        self.media += found.media
        self.files += len(found.sample.media)
        self.targets += found.targets
        if found.media:
            self.vision += found.tokens
        else:
            self.text += found.tokens


@dataclass
class Findings:
    """What ``examine`` found.

    Attributes:
        exact: tokens were counted by a tokenizer; otherwise a byte of text counts as a token.
        problems: samples that cannot be used, a line for each.
        notes: files that were not used, although no sample is known to be lost.
        next: what to do with data that a run can use.
    """

    exact: bool
    tallies: dict[str, Tally] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    next: str = ""

    def as_json(self) -> str:
        tallies = {name: tally.figures() for name, tally in self.tallies.items()}
        content = {"exact": self.exact, "families": tallies, "problems": self.problems, "notes": self.notes}
        return json.dumps(content, indent=1)

    def show(self, uri: str, console: Console) -> None:
        table = Table(title=Text(one_line(uri)))  # a name may look like markup
        table.add_column("family", overflow="fold")
        for name in COLUMNS:
            table.add_column(name, justify="right")
        figures = {one_line(name): tally.figures() for name, tally in self.tallies.items()}
        for name, found in figures.items():
            table.add_row(Text(name), *(f"{found[key]:,}" for key in COLUMNS.values()))
        console.print(table)
        for name, found in figures.items():
            share = found["targets"] / (found["text"] + found["vision"])
            told = f"{found['files']:,} images or videos; {share:.0%} of the tokens are trained on; half of the samples"
            console.print(f"{name}: {told} have {found['median']:,} tokens or more", markup=False, soft_wrap=True)
        if not self.exact:
            console.print("Every byte of text counts as a token: --tokenizer names a folder with a tokenizer.")
        for kind, lines in (("note", self.notes), ("problem", self.problems)):
            for line in lines[:SHOWN]:
                console.print(f"{kind}: {line}", markup=False, soft_wrap=True)
            if len(lines) > SHOWN:
                console.print(f"... and {len(lines) - SHOWN} more {kind}s: --json lists all")
        console.print(f"problems: {len(self.problems) or 'none'}")
        if self.next:
            console.print(self.next, markup=False, soft_wrap=True)


def examine(uri: str, tokenizer_folder: Path | None = None, row: int = 0) -> Findings:
    """Read every sample at ``uri``: shards or prepare_data's output in a folder or at s3://, images with texts, or
    conversations.

    Args:
        row: tokens of a row; a longer sample is a problem. 0: of any length.

    Raises:
        MoonflowError: there is nothing to use, or it cannot be reached.
    """
    with tempfile.TemporaryDirectory(prefix="moonflow-") as cache:
        tokenizer = Tokenizer.load(tokenizer_folder) if tokenizer_folder is not None else None
        whose: list[tuple[str | None, int | None, Part]]
        if (data := _prepared(uri, Path(cache))) is not None:
            tokenizer = tokenizer or data.tokenizer
            config, whose = data.image_config, list(_parts_of(data))
        else:
            config, whose = ImageConfig(), [(None, None, part) for part in parts_at(uri)]
        findings = Findings(tokenizer is not None)
        tokenizer = tokenizer or Tokenizer.train([], 256)
        for label, samples, part in whose:
            _count(findings, label, samples, part, tokenizer, config, row)
        if not findings.tallies and not findings.problems:
            raise MoonflowError(f"{uri} holds no samples")
        findings.notes = [*dict.fromkeys(findings.notes)]
        if any(isinstance(part, Lines) for _, _, part in whose):
            findings.next = _advice(uri, findings)
    return findings


def _advice(uri: str, findings: Findings) -> str:
    """What to do with a file or folder of conversations."""
    used = sum(tally.samples for tally in findings.tallies.values())
    if len(findings.problems) > MAX_BROKEN * (used + len(findings.problems)):
        return f"more than {MAX_BROKEN:.0%} of the lines cannot be used, and a run would refuse them: fix them first"
    sources = shlex.quote(f"prepare_data.sources=mine={uri}")
    left_out = "; it leaves the lines named above out" if findings.problems else ""
    return f"to train on it{left_out}: moonflow run --set {sources} --set zero_vision_sft.sources=mine=0.3"


def _prepared(uri: str, cache: Path) -> DataFolder | None:
    """prepare_data's output at ``uri``; None if something else is there."""
    if (folder := local_folder(uri)) is not None:
        return DataFolder(folder) if os.path.isfile(folder / "index.json") else None
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
    findings: Findings, label: str | None, samples: int | None, part: Part, tokenizer: Tokenizer, config: ImageConfig,
    row: int,
) -> None:  # fmt: skip
    seen = 0
    for found in checked(part, tokenizer, config):
        if isinstance(found, Note):
            findings.notes.append(found.line)
            continue
        seen += 1
        if isinstance(found, Problem):
            findings.problems.append(found.line)
            continue
        if 0 < row < found.tokens:
            where = part.place(found.sample) if isinstance(part, Lines) else f"{part.where}: sample {found.sample.key}"
            told = (
                f"{where} has {found.tokens:,} tokens and fits no row of {row:,}: shorten it, or make the rows longer"
            )
            findings.problems.append(one_line(told))
            continue
        findings.tallies.setdefault(label or found.sample.family, Tally()).add(found)
    if samples is not None and seen != samples and isinstance(part, ShardPart):
        findings.problems.append(f"shard {part.shard}: index.json says {samples} samples, it has {seen}: make it again")
