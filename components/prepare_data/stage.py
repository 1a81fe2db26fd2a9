"""Data preparation: a tokenizer, and WebDataset shards of the built-in families and of the user's data.

Train and eval have different sources. A killed attempt starts again from nothing: it takes seconds, and every sample is
a function of (seed, split, family, index), so the new shards have the same bytes. Held-out samples do not depend on the
step's seed, so that the scores of runs with different seeds compare.
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

from components.prepare_data.codec import take_over
from components.prepare_data.config import HELD_OUT_SEED, Config, parse_counts
from components.prepare_data.lengths import measured
from components.prepare_data.user_data import entries, files_of, summary, write_part
from components.prepare_data.workers import workers
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.datasets.user_data import parts_at
from components.runtime.step import StepContext
from model.codec.chat import render
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.families import FAMILIES, lengthened
from model.data.families.family import Family
from model.data.families.world import Delegation, world_family
from model.data.order.lengths import write_lengths
from model.data.order.mixtures import mixtures
from model.data.samples.sample import Sample, Split
from model.data.samples.shards import write_shard
from model.data.user.user_data import parse_sources

TOKENIZER_SAMPLES = 6_000  # train samples, shared out as text samples are: more do not change the first ranks (ours)


@dataclass(frozen=True)
class PlannedShard:
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
    shards = list(plan(counts, config.eval_samples, config.samples_per_shard, parse_counts(config.eval_samples_of)))
    total = sum(shard.count for shard in shards)
    sources = parse_sources(config.sources)
    parts_of = {source.name: parts_at(source.uri) for source in sources}
    files = {source.name: files_of(source, parts_of[source.name]) for source in sources}
    parts = [(source, number, part) for source in sources for number, part in enumerate(parts_of[source.name])]
    for split in ("train", "eval"):
        (folder / split).mkdir(parents=True, exist_ok=True)

    # 2. Shards, in parallel, while this process trains the tokenizer on the train split. What starts from a checkpoint
    # must be read as that checkpoint reads: its tokenizer and image settings are taken over.
    with workers(min(config.processes, len(shards))) as executor:
        units = total + config.samples_per_shard * len(parts)  # the samples of a part are not known before it is read
        context.progress.update(0, units)
        futures = {executor.submit(write, shard, folder, config): shard for shard in shards}
        if "tokenizer" in inputs:
            tokenizer, image_config = take_over(context, inputs["tokenizer"], folder)
        else:
            tokenizer, image_config = Tokenizer.train(tokenizer_texts(config), config.tokenizer_ranks), ImageConfig()
            tokenizer.save(folder)

        # 3. The user's samples, and the length of every train sample: the order of data is planned from these.
        writing = [
            executor.submit(write_part, part, source.name, number, folder, image_config)
            for source, number, part in parts
        ]
        done, measuring = 0, []
        for future in as_completed(futures):
            shard = futures[future]
            done += future.result()
            if shard.split == "train":
                measuring.append(executor.submit(measured, folder, shard.name, shard.count, image_config))
            context.progress.update(done, units, samples_per_s=done / (time.monotonic() - started))

        lengths = dict(future.result() for future in measuring)
        written_parts = []
        for one_part in writing:
            written_parts.append(one_part.result())
            done += config.samples_per_shard
            context.progress.update(done, units)

    # 4. The index that trainers open, then one manifest over everything.
    index: dict[str, Any] = {"families": index_of(shards), "image": image_config.model_dump(mode="json"), "own": {}}
    for source in sources:
        written = [one for (named, _, _), one in zip(parts, written_parts, strict=True) if named == source]
        index["own"][source.name] = summary(source, written, files[source.name])
        index["families"][source.name] = entries(written)
        lengths |= {name: np.array(sizes) for one in written for (_, name), sizes in one.lengths.items()}
        for problem in (problem for one in written for problem in one.problems):
            print(f"prepare_data: left out of {source.name}: {problem}", file=sys.stderr, flush=True)
        if files[source.name]:
            told = "joins no pre-training; zero_vision_sft.sources gives it a share of the tokens"
            print(f"prepare_data: {source.name} holds conversations: it {told}", file=sys.stderr, flush=True)
        for note in dict.fromkeys(note for one in written for note in one.notes):
            print(f"prepare_data: {source.name}: {note}", file=sys.stderr, flush=True)
    write_lengths(folder, lengths)
    (folder / "index.json").write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")
    tokens, media = (sum(int(values[:, column].sum()) for values in lengths.values()) for column in (0, 1))
    figures = {
        "samples": total + sum(len(sizes) for one in written_parts for sizes in one.lengths.values()),
        "own_left_out": sum(len(one.problems) for one in written_parts),
        "train_tokens": tokens,
        "train_media_tokens": media,
        "samples_per_s": round(total / (time.monotonic() - started), 1),
        "characters_per_token": round(characters_per_token(tokenizer, config), 3),
    }
    context.metrics.log({f"data/{name}": float(value) for name, value in figures.items()}, 0)
    return context.publish(folder, kind="data", complete=True, extra=figures)


def train_counts(config: Config) -> dict[str, int]:
    """Training samples of each family; at least one, so that every family can be opened."""
    shares, counts = mixtures(config.mixture), dict[str, int]()
    for weights, samples in (
        (shares.text_samples, config.text_samples),
        (shares.image_samples, config.image_samples),
        (shares.long_samples, config.long_samples),
    ):
        whole = sum(weights.values())
        counts |= {name: max(1, round(samples * weight / whole)) for name, weight in weights.items()}
    return counts


def plan(
    counts: Mapping[str, int], eval_samples: int, samples_per_shard: int, more: Mapping[str, int] | None = None
) -> Iterator[PlannedShard]:
    """All shards. Train comes first: its image families take longest and should not be left for one process.

    Args:
        counts: family -> training samples.
        eval_samples: held-out samples of a family; ``more`` says of which ones there are more.
    """
    order = sorted(counts, key=lambda name: FAMILIES[name].modality == "text")
    splits: tuple[Split, ...] = ("train", "eval")
    for split in splits:
        for name in order:
            count = counts[name] if split == "train" else max(eval_samples, (more or {}).get(name, 0))
            for number, start in enumerate(range(0, count, samples_per_shard)):
                yield PlannedShard(name, split, number, start, min(samples_per_shard, count - start))


def families(config: Config) -> dict[str, Family]:
    """All families, with texts and videos as long and tasks of the offline world as they are to be."""
    made, world = lengthened(config.long_documents, config.long_videos), mixtures(config.mixture).world
    if world is None:
        return made
    delegation = Delegation(world.delegated, True, world.delegated_up_to, world.bare)
    chosen = [world_family(name, sizes, delegation=delegation) for name, sizes in world.sizes.items()]
    return made | {family.name: family for family in chosen}


def write(shard: PlannedShard, folder: Path, config: Config) -> int:
    """Generate and write one shard; returns its number of samples."""
    family = families(config)[shard.family]
    indices = range(shard.start, shard.start + shard.count)
    seed = HELD_OUT_SEED if shard.split == "eval" else config.seed
    data = write_shard(family.sample(seed, shard.split, index) for index in indices)
    (folder / shard.name).write_bytes(data)
    return shard.count


def texts_of(sample: Sample) -> Iterator[str]:
    """The texts of a sample that the tokenizer will encode, with the words of the chat template around them."""
    for segment in sample.segments:
        if segment["type"] == "text":
            yield segment["text"]
    for piece in render(sample.messages, sample.tools):
        if piece.kind == "text":
            yield piece.text


def tokenizer_texts(config: Config) -> Iterator[str]:
    """Texts of train samples, enough for the ranks asked for. Text families only: images take long to draw."""
    samples = max(TOKENIZER_SAMPLES, 4 * config.tokenizer_ranks)
    weights = mixtures(config.mixture).text_samples
    whole, known = sum(weights.values()), families(config)
    for name, weight in weights.items():
        for index in range(round(samples * weight / whole)):
            yield from texts_of(known[name].sample(config.seed, "train", index))


def characters_per_token(tokenizer: Tokenizer, config: Config) -> float:
    """On eval samples of the text families, weighted as the training samples are."""
    characters, tokens, known = 0.0, 0.0, families(config)
    for name, weight in mixtures(config.mixture).text_samples.items():
        for index in range(20):
            for text in texts_of(known[name].sample(HELD_OUT_SEED, "eval", index)):
                characters += weight * len(text)
                tokens += weight * len(tokenizer.encode(text))
    return characters / tokens


def index_of(shards: list[PlannedShard]) -> dict[str, dict[str, list[dict[str, object]]]]:
    """family -> split -> its shards in order."""
    families: dict[str, dict[str, list[dict[str, object]]]] = {}
    for shard in shards:
        entries = families.setdefault(shard.family, {}).setdefault(shard.split, [])
        entries.append({"shard": shard.name, "samples": shard.count})
    return families
