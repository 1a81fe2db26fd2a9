"""How long every sample of a shard is; the order of data is planned from it, without decoding anything (ours).

``lengths.safetensors`` next to index.json holds, by shard name, int32 [N, 2]: tokens of each sample, and how many of
them are media pads. 0 tokens mark a sample that could not be read when it was measured; it is never planned.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from model.boundary.errors import MoonflowError
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.samples.problems import Problem, attempt
from model.data.samples.shards import Shard
from model.data.samples.tokenize import count_tokens

LENGTHS = "lengths.safetensors"
Lengths = NDArray[np.int32]


def measure(shard: Shard, samples: int, tokenizer: Tokenizer, image_config: ImageConfig) -> tuple[Lengths, list[str]]:
    """int32 [samples, 2] of a shard, and one line for each sample with 0 tokens: what is wrong with it."""
    lengths = np.zeros((samples, 2), dtype=np.int32)
    problems: list[str] = []
    for number in range(min(samples, len(shard))):
        counted = attempt(f"shard {shard.label}, sample {number}", _count, shard, number, tokenizer, image_config)
        if isinstance(counted, Problem):
            problems.append(counted.line)
        else:
            lengths[number] = counted
    if shard.damage is not None:
        problems.append(f"{shard.damage} ({samples - len(shard)} samples are lost)")
    return lengths, problems


def _count(shard: Shard, number: int, tokenizer: Tokenizer, image_config: ImageConfig) -> tuple[int, int]:
    return count_tokens(shard[number], tokenizer, image_config)


def write_lengths(folder: Path, lengths: Mapping[str, Lengths]) -> None:
    """Write ``lengths.safetensors`` into a data folder."""
    values = {name: np.ascontiguousarray(lengths[name], dtype=np.int32) for name in sorted(lengths)}
    save_file(values, folder / LENGTHS)


def read_lengths(folder: Path) -> dict[str, Lengths]:
    """Shard name -> lengths; empty for a folder without the file. MoonflowError if the file is damaged."""
    if not (folder / LENGTHS).is_file():
        return {}
    try:
        return load_file(folder / LENGTHS)
    except (OSError, SafetensorError) as error:
        raise MoonflowError(f"{folder / LENGTHS} cannot be read ({error}); run prepare_data again") from error
