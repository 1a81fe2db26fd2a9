"""Data preparation: real sources, and the user's own, become a tokenizer and WebDataset shards, split by sources.

A killed attempt starts again from nothing: it takes seconds, and every sample is a function of (seed, split, family,
index), so the new shards are the same bytes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.prepare_data.config import Config
from components.prepare_data.families import IMAGE_WEIGHTS, LONG_WEIGHTS, TEXT_WEIGHTS
from components.prepare_data.lengths import measured
from components.prepare_data.own import entries, summary, write_part
from components.prepare_data.workers import workers
from components.runtime.manifest import Manifest
from components.runtime.own_data import parts_at
from components.runtime.step import StepContext
from model.chat import render
from model.data.families import FAMILIES, lengthened
from model.data.lengths import write_lengths
from model.data.own import parse_sources
from model.data.sample import Sample, Split
from model.data.shards import write_shard
from model.image import ImageConfig
from model.tokenizer import Tokenizer

TOKENIZER_SAMPLES = 6_000  # of the train split, by the same shares: more do not change the first ranks (ours)


@dataclass(frozen=True)
class Shard:
    """Samples ``start`` to ``start + count`` of one family and split."""

    family: str
    split: Split
    number: int
    start: int
    count: int

    @property
    def name(self) -> str:
        return f"{self.split}/{self.family}-{self.number:05d}.tar"


def run(config: Config, inputs: dict[str, str], context: StepContext) -> Manifest:
    started = time.monotonic()
    folder = context.work / "data"

    # 1. What to make: every family's train and eval samples, cut into shards.
    counts = train_counts(config)
    shards = list(plan(counts, config.eval_samples, config.samples_per_shard))
    total = sum(shard.count for shard in shards)
    sources = parse_sources(config.sources)
    parts = [(source, number, part) for source in sources for number, part in enumerate(parts_at(source.uri))]
    for split in ("train", "eval"):
        (folder / split).mkdir(parents=True, exist_ok=True)

    # 2. Shards, in parallel, while this process trains the tokenizer on the train split.
    with workers(min(config.processes, len(shards))) as executor:
        context.progress.update(0, total)
        futures = {executor.submit(write, shard, folder, config): shard for shard in shards}
        tokenizer = Tokenizer.train(tokenizer_texts(config), config.tokenizer_ranks)
        tokenizer.save(folder)

        # 3. The user's own samples, and how long every train sample is: what the order of data is planned from.
        own = [executor.submit(write_part, part, source.name, number, folder) for source, number, part in parts]
        done, measuring = 0, []
        for future in as_completed(futures):
            shard = futures[future]
            done += future.result()
            if shard.split == "train":
                measuring.append(executor.submit(measured, folder, shard.name, shard.count))
            context.progress.update(done, total, samples_per_s=done / (time.monotonic() - started))

        lengths = dict(future.result() for future in measuring)
        added = [future.result() for future in own]

    # 4. The index that trainers open, then one manifest over everything.
    index: dict[str, Any] = {"families": index_of(shards), "image": ImageConfig().model_dump(mode="json"), "own": {}}
    for source in sources:
        written = [one for (named, _, _), one in zip(parts, added, strict=True) if named == source]
        index["own"][source.name] = summary(source, written)
        index["families"][source.name] = entries(written)
        lengths |= {name: np.array(sizes) for one in written for (_, name), sizes in one.lengths.items()}
        for problem in (problem for one in written for problem in one.problems):
            print(f"prepare_data: left out of {source.name}: {problem}", file=sys.stderr, flush=True)
        for note in (note for one in written for note in one.notes):
            print(f"prepare_data: of {source.name}: {note}", file=sys.stderr, flush=True)
    write_lengths(folder, lengths)
    (folder / "index.json").write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")
    tokens, media = (sum(int(values[:, column].sum()) for values in lengths.values()) for column in (0, 1))
    figures = {
        "samples": total + sum(len(sizes) for one in added for sizes in one.lengths.values()),
        "own_left_out": sum(len(one.problems) for one in added),
        "train_tokens": tokens,
        "train_media_tokens": media,
        "samples_per_s": round(total / (time.monotonic() - started), 1),
        "characters_per_token": round(characters_per_token(tokenizer, counts, config.seed), 3),
    }
    context.metrics.log({f"data/{name}": float(value) for name, value in figures.items()}, 0)
    return context.publish(folder, kind="data", complete=True, extra=figures)


def train_counts(config: Config) -> dict[str, int]:
    """Training samples of each family; at least one, so that every family can be opened."""
    counts: dict[str, int] = {}
    for weights, samples in (
        (TEXT_WEIGHTS, config.text_samples),
        (IMAGE_WEIGHTS, config.image_samples),
        (LONG_WEIGHTS, config.long_samples),
    ):
        whole = sum(weights.values())
        counts |= {name: max(1, round(samples * weight / whole)) for name, weight in weights.items()}
    return counts


def plan(counts: Mapping[str, int], eval_samples: int, samples_per_shard: int) -> Iterator[Shard]:
    """All shards. Train comes first: its image families take longest and should not be left to one process."""
    order = sorted(counts, key=lambda name: FAMILIES[name].modality == "text")
    splits: tuple[Split, ...] = ("train", "eval")
    for split in splits:
        for name in order:
            count = counts[name] if split == "train" else eval_samples
            for number, start in enumerate(range(0, count, samples_per_shard)):
                yield Shard(name, split, number, start, min(samples_per_shard, count - start))


def write(shard: Shard, folder: Path, config: Config) -> int:
    """Generate and write one shard; returns its number of samples."""
    family = lengthened(config.long_documents, config.long_videos)[shard.family]
    indices = range(shard.start, shard.start + shard.count)
    data = write_shard(family.sample(config.seed, shard.split, index) for index in indices)
    (folder / shard.name).write_bytes(data)
    return shard.count


def texts_of(sample: Sample) -> Iterator[str]:
    """What the tokenizer will meet of a sample: its text, and the words of the chat template around it."""
    for segment in sample.segments:
        if segment["type"] == "text":
            yield segment["text"]
    for piece in render(sample.messages, sample.tools):
        if piece.kind == "text":
            yield piece.text


def tokenizer_texts(config: Config) -> Iterator[str]:
    """Texts of train samples: enough of them for the ranks asked for. Text families only, images cost their drawing."""
    samples = max(TOKENIZER_SAMPLES, 4 * config.tokenizer_ranks)
    whole = sum(TEXT_WEIGHTS.values())
    for name, weight in TEXT_WEIGHTS.items():
        for index in range(round(samples * weight / whole)):
            yield from texts_of(FAMILIES[name].sample(config.seed, "train", index))


def characters_per_token(tokenizer: Tokenizer, counts: Mapping[str, int], seed: int) -> float:
    """On eval samples of the text families, weighted as the training samples are."""
    characters = tokens = 0.0
    for name in TEXT_WEIGHTS:
        for index in range(20):
            for text in texts_of(FAMILIES[name].sample(seed, "eval", index)):
                characters += counts[name] * len(text)
                tokens += counts[name] * len(tokenizer.encode(text))
    return characters / tokens


def index_of(shards: list[Shard]) -> dict[str, dict[str, list[dict[str, object]]]]:
    """family -> split -> its shards in order."""
    families: dict[str, dict[str, list[dict[str, object]]]] = {}
    for shard in shards:
        entries = families.setdefault(shard.family, {}).setdefault(shard.split, [])
        entries.append({"shard": shard.name, "samples": shard.count})
    return families
