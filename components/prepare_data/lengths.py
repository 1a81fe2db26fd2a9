"""The lengths of the samples of a written shard, measured in a worker process."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from model.boundary.errors import MoonflowError
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.order.lengths import Lengths, measure
from model.data.samples.shard_source import LocalShards
from model.data.samples.shards import Shard


@cache
def tokenizer_of(folder: Path) -> Tokenizer:
    """Read once in each worker."""
    return Tokenizer.load(folder)


def measured(folder: Path, name: str, samples: int, image_config: ImageConfig) -> tuple[str, Lengths]:
    """The shard's name, and tokens and media pads of its samples. MoonflowError names a sample that cannot be used."""
    shard = Shard(LocalShards(folder).open(name), name)
    lengths, problems = measure(shard, samples, tokenizer_of(folder), image_config)
    shard.close()
    if problems:
        raise MoonflowError(problems[0])
    return name, lengths
