"""Small real folders for tests: data as prepare_data writes it, and a checkpoint with random weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np

from model.codec.chat import render
from model.codec.tokenizer import Tokenizer
from model.data.families import FAMILIES
from model.data.samples.sample import Sample
from model.data.samples.shards import write_shard
from model.network.config import preset
from model.network.initial import new_model
from model.network.yarn import extend_context
from tests.corpus import small_tokenizer
from tests.training import save_checkpoint

TASKS = sorted(name for name, family in FAMILIES.items() if family.kind == "task")


@cache
def eval_samples(family: str, count: int) -> tuple[Sample, ...]:
    return tuple(FAMILIES[family].generate(np.random.default_rng(index), "eval", index) for index in range(count))


@cache
def tiny_tokenizer() -> Tokenizer:
    """A tokenizer of the tiny preset's 768 ranks, from the tasks' own texts and some documents."""
    samples = [sample for name in TASKS for sample in eval_samples(name, 24)]
    texts = [piece.text for s in samples for piece in render(s.messages, s.tools) if piece.kind == "text"]
    documents = [FAMILIES["stdlib_text"].generate(np.random.default_rng(n), "train", n) for n in range(400)]
    return Tokenizer.train(texts * 2 + [part["text"] for d in documents for part in d.segments], 768)


def write_data_folder(folder: Path, count: int = 4) -> Path:
    """Tokenizer, index and one eval shard of each task family."""
    tiny_tokenizer().save(folder)
    families = {}
    for name in TASKS:
        shard = folder / "eval" / f"{name}-00000.tar"
        shard.parent.mkdir(exist_ok=True)
        shard.write_bytes(write_shard(eval_samples(name, count)))
        families[name] = {"train": [], "eval": [{"shard": f"eval/{shard.name}", "samples": count}]}
    (folder / "index.json").write_text(json.dumps({"families": families, "image": {}}))
    return folder


def write_training_folder(
    folder: Path, names: Iterable[str] = ("recall", "fact_qa", "digit_string"), count: int = 16, shards: int = 1
) -> Path:
    """Tokenizer, index and train shards of each family, with ``count`` samples in each shard."""
    small_tokenizer().save(folder)
    (folder / "train").mkdir(parents=True)
    families = {}
    for name in names:
        listed = []
        for number in range(shards):
            shard, numbers = f"train/{name}-{number:05d}.tar", range(number * count, (number + 1) * count)
            (folder / shard).write_bytes(write_shard(FAMILIES[name].sample(0, "train", n) for n in numbers))
            listed.append({"shard": shard, "samples": count})
        families[name] = {"train": listed, "eval": []}
    (folder / "index.json").write_text(json.dumps({"families": families, "image": {}}))
    return folder


def write_checkpoint(folder: Path, seed: int = 0, window: int = 0) -> Path:
    """The tiny preset with random weights, for inference only; ``window``: its context, if it is to be longer."""
    tokenizer_folder = folder.parent / f"{folder.name}-tokenizer"
    tiny_tokenizer().save(tokenizer_folder)
    model = new_model(preset("tiny"), seed=seed)
    if window:
        extend_context(model, window)
    save_checkpoint(folder, model, tokenizer_folder, None, {})
    return folder
