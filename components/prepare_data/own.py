"""A user's own sources, rewritten as shards of this data: checked, split by held-out sources, measured."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from components.prepare_data.lengths import tokenizer_of
from model.data.families.family import SPLITS, in_split
from model.data.own import Named, Part, check, renamed
from model.data.sample import Sample, Split
from model.data.shards import write_shard
from model.data.stream import MAX_BROKEN
from model.errors import MoonflowError
from model.image import ImageConfig


@dataclass
class Written:
    """What became of one part of a source.

    Attributes:
        lengths: (split, shard's name) -> (tokens, media pads) of its samples.
        problems: one line for each sample that was left out.
    """

    lengths: dict[tuple[Split, str], list[tuple[int, int]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def write_part(part: Part, name: str, number: int, folder: Path) -> Written:
    """Write the usable samples of part ``number`` of the source ``name`` into a train and an eval shard."""
    tokenizer, image_config = tokenizer_of(folder), ImageConfig()
    written = Written()
    kept: dict[Split, list[Sample]] = {split: [] for split in SPLITS}
    sizes: dict[Split, list[tuple[int, int]]] = {split: [] for split in SPLITS}
    for count, found in enumerate(part.samples()):
        if isinstance(found, str):
            written.problems.append(found)
            continue
        sample = renamed(found, name, number, count)
        try:
            tokenized, media = check(sample, tokenizer, image_config)
        except MoonflowError as error:
            written.problems.append(f"{found.key}: {error}")
            continue
        split: Split = "train" if in_split(sample.source, "train") else "eval"
        kept[split].append(sample)
        sizes[split].append((len(tokenized.input_ids), media))
    for split, samples in kept.items():
        if samples:
            shard = f"{split}/{name}-{number:05d}.tar"
            (folder / shard).write_bytes(write_shard(samples))
            written.lengths[split, shard] = sizes[split]
    return written


def summary(source: Named, parts: Sequence[Written]) -> dict[str, object]:
    """The source's entry of index.json under ``own``: its weight, and whether it joins the vision or the text mixture.

    Raises:
        MoonflowError: too many samples are of no use, or none is left to train on.
    """
    problems = [problem for part in parts for problem in part.problems]
    sizes = [size for part in parts for values in part.lengths.values() for size in values]
    trained = sum(len(values) for part in parts for (split, _), values in part.lengths.items() if split == "train")
    if not trained or len(problems) > MAX_BROKEN * (len(problems) + len(sizes)):
        raise MoonflowError(
            f"source {source.name} ({source.uri}): {len(problems)} of {len(problems) + len(sizes)} samples cannot be "
            f"used and {trained} are left to train on; `moonflow data check {shlex.quote(source.uri)}` names all, the "
            f"first is: {problems[0] if problems else 'too few samples to hold some out'}"
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
