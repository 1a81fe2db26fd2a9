"""How long the samples of a written shard are, in a worker process."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from model.data.lengths import Lengths, measure
from model.data.shards import Shard
from model.data.source import LocalShards
from model.errors import MoonflowError
from model.image import ImageConfig
from model.tokenizer import Tokenizer


@cache
def tokenizer_of(folder: Path) -> Tokenizer:
    """Read once in each worker."""
    return Tokenizer.load(folder)


def measured(folder: Path, name: str, samples: int) -> tuple[str, Lengths]:
    """The shard's name, and tokens and media pads of its samples; MoonflowError names one that cannot be used."""
    shard = Shard(LocalShards(folder).open(name), name)
    lengths, problems = measure(shard, samples, tokenizer_of(folder), ImageConfig())
    shard.close()
    if problems:
        raise MoonflowError(problems[0])
    return name, lengths
