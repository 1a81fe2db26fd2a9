"""All samples of a shard, for tests."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from model.data.samples.sample import Sample
from model.data.samples.shard_source import LocalShards
from model.data.samples.shards import Shard


def read_shard(shard: bytes | Path) -> Iterator[Sample]:
    """In order; raises what is wrong with a sample, or with the rest of the shard."""
    if isinstance(shard, bytes):
        opened = Shard(io.BytesIO(shard), "<bytes>")
    else:
        opened = Shard(LocalShards(shard.parent).open(shard.name), str(shard))
    with closing(opened):
        for number in range(len(opened)):
            yield opened[number]
        if opened.damage is not None:
            raise opened.damage
