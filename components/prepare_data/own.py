"""A user's own sources, rewritten as shards of this data: checked, split by held-out sources, measured."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from components.prepare_data.lengths import tokenizer_of
from components.runtime.own_data import checked
from model.data.families.family import SPLITS, in_split
from model.data.own import Checked, Named, Part, renamed
from model.data.problems import Note, attempt
from model.data.sample import Split
from model.data.shards import ShardWriter
from model.data.stream import MAX_BROKEN
from model.errors import MoonflowError
from model.image import ImageConfig


@dataclass
class Written:
    """What became of one part of a source.

    Attributes:
        lengths: (split, shard's name) -> (tokens, media pads) of its samples.
        problems: one line for each sample that was left out.
        notes: one line for what was not used, though no sample is known to be lost.
    """

    lengths: dict[tuple[Split, str], list[tuple[int, int]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def write_part(part: Part, name: str, number: int, folder: Path) -> Written:
    """Write the usable samples of part ``number`` of the source ``name`` into a train and an eval shard."""
    written = Written()
    writers = {split: ShardWriter() for split in SPLITS}
    sizes: dict[Split, list[tuple[int, int]]] = {split: [] for split in SPLITS}
    for count, found in enumerate(checked(part, tokenizer_of(folder), ImageConfig())):
        if isinstance(found, Note):
            written.notes.append(found.line)
            continue
        if isinstance(found, Checked):
            sample = renamed(found.sample, name, number, count)
            split: Split = "train" if in_split(sample.source, "train") else "eval"
            failed = attempt(f"{part.where}, sample {found.sample.key}", writers[split].add, sample)
            if failed is None:
                sizes[split].append((found.tokens, found.media))
                continue
            found = failed
        written.problems.append(found.line)
    for split, writer in writers.items():
        if len(writer):
            shard = f"{split}/{name}-{number:05d}.tar"
            (folder / shard).write_bytes(writer.content())
            written.lengths[split, shard] = sizes[split]
    return written


def summary(source: Named, parts: Sequence[Written]) -> dict[str, object]:
    """The source's entry of index.json under ``own``: its weight, and whether it joins the vision or the text mixture.

    Raises:
        MoonflowError: too many samples are of no use, or none is left to train on.
    """
    problems = [problem for part in parts for problem in part.problems]
    notes = [note for part in parts for note in part.notes]
    sizes = [size for part in parts for values in part.lengths.values() for size in values]
    trained = sum(len(values) for part in parts for (split, _), values in part.lengths.items() if split == "train")
    if not trained or len(problems) > MAX_BROKEN * (len(problems) + len(sizes)):
        raise MoonflowError(
            f"source {source.name} ({source.uri}): {len(problems)} of {len(problems) + len(sizes)} samples cannot be "
            f"used and {trained} are left to train on; `moonflow data check {shlex.quote(source.uri)}` names all, the "
            f"first is: {'; '.join([*problems[:1], *notes[:1]]) or 'too few samples to hold some out'}"
        )
    tokens, media = np.array(sizes)[:, 0], np.array(sizes)[:, 1]
    vision = int(tokens[media > 0].sum())
    return {"weight": source.weight, "vision": 2 * vision >= int(tokens.sum()), "left_out": len(problems)}


def entries(parts: Sequence[Written]) -> dict[str, list[dict[str, object]]]:
    """The source's entry of index.json under ``families``: split -> its shards."""
    found: dict[str, list[dict[str, object]]] = {split: [] for split in SPLITS}
    for one in parts:
        for (split, name), sizes in one.lengths.items():
            found[split].append({"shard": name, "samples": len(sizes)})
    return found
