"""A user's data, rewritten as shards of this data: checked, split by held-out sources, measured."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from components.prepare_data.lengths import tokenizer_of
from components.runtime.datasets.user_data import checked
from model.boundary.errors import MoonflowError
from model.codec.image import ImageConfig
from model.data.families.family import SPLITS, in_split
from model.data.samples.problems import MAX_BROKEN, Note, attempt
from model.data.samples.sample import Split
from model.data.samples.shards import ShardWriter
from model.data.user.json_lines import Lines
from model.data.user.user_data import CheckedSample, Part, UserSource, renamed

SHARD_BYTES = 128 * 2**20  # of a shard of samples with large images, which a process holds in memory (ours)


@dataclass
class Written:
    """The result of rewriting one part of a source.

    Attributes:
        lengths: (split, shard's name) -> (tokens, media pads) of its samples.
        problems: one line for each sample that was left out.
        notes: one line for each kind of file that was not used, although no sample is known to be lost.
    """

    lengths: dict[tuple[Split, str], list[tuple[int, int]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def write_part(part: Part, name: str, number: int, folder: Path, image_config: ImageConfig) -> Written:
    """Write the usable samples of part ``number`` of the source ``name`` into train shards and eval shards.

    A part fills one shard of each split, or more if its images are large.
    """
    written = Written()
    writers = {split: ShardWriter() for split in SPLITS}
    sizes: dict[Split, list[tuple[int, int]]] = {split: [] for split in SPLITS}
    counts = dict.fromkeys(SPLITS, 0)

    def close(split: Split) -> None:
        if not len(writers[split]):
            return
        more = f"-{counts[split]:03d}" if counts[split] else ""
        shard = f"{split}/{name}-{number:05d}{more}.tar"
        (folder / shard).write_bytes(writers[split].content())
        written.lengths[split, shard] = sizes[split]
        writers[split], sizes[split] = ShardWriter(), []
        counts[split] += 1

    for count, found in enumerate(checked(part, tokenizer_of(folder), image_config)):
        if isinstance(found, Note):
            written.notes.append(found.line)
            continue
        if isinstance(found, CheckedSample):
            sample = renamed(found.sample, name, number, count)
            if isinstance(part, Lines):
                sample = replace(sample, key=f"{name}-{found.sample.key}")  # which says file and line
            split: Split = "train" if in_split(sample.source, "train") else "eval"
            failed = attempt(f"{part.where}, sample {found.sample.key}", writers[split].add, sample)
            if failed is None:
                sizes[split].append((found.tokens, found.media))
                if writers[split].size > SHARD_BYTES:
                    close(split)
                continue
            found = failed
        written.problems.append(found.line)
    for split in SPLITS:
        close(split)
    return written


def summary(source: UserSource, parts: Sequence[Written], files: Sequence[str] = ()) -> dict[str, object]:
    """The source's entry of index.json under ``own``: its weight, and whether it joins the vision or the text mixture.
    Conversations join neither; their files are named, by whose numbers and lines the samples have their keys.

    Args:
        files: of conversations; none for a source of another kind.

    Raises:
        MoonflowError: too many samples cannot be used, or none is left to train on.
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
    entry: dict[str, object] = {
        "weight": source.weight,
        "vision": 2 * vision >= int(tokens.sum()),
        "left_out": len(problems),
    }
    return {**entry, "conversations": list(files)} if files else entry


def files_of(source: UserSource, parts: Sequence[Part]) -> list[str]:
    """The files of conversations of a source, by their numbers; none for a source of another kind.

    Raises:
        MoonflowError: the source has a weight, which conversations have no use for.
    """
    names = {part.file: part.name for part in parts if isinstance(part, Lines)}
    if names and source.weight != 1:
        raise MoonflowError(
            f"source {source.name} holds conversations, which join no mixture of pre-training: leave its weight out, "
            f"and give its share of the tokens, as zero_vision_sft.sources={source.name}=0.3"
        )
    return [names.get(number, "") for number in range(max(names, default=-1) + 1)]


def entries(parts: Sequence[Written]) -> dict[str, list[dict[str, object]]]:
    """The source's entry of index.json under ``families``: split -> its shards."""
    found: dict[str, list[dict[str, object]]] = {split: [] for split in SPLITS}
    for one in parts:
        for (split, name), sizes in one.lengths.items():
            found[split].append({"shard": name, "samples": len(sizes)})
    return found
