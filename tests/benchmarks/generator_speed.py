"""Samples per CPU second that every task family generates.

    python tests/benchmarks/generator_speed.py [--seconds 1] [--json]

Expect about two minutes on one CPU core: a second for each family, and its warm-up of 100 samples.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from model.data.families import FAMILIES
from model.data.families.family import Family
from model.data.samples.shards import Shard, write_shard


def measure(family: Family, seconds: float) -> tuple[float, float]:
    """CPU seconds to the first sample, and samples per CPU second after a warm-up of 100."""
    start = time.process_time()
    family.sample(0, "train", 0)
    first = time.process_time() - start
    for index in range(100):
        family.sample(0, "train", index)
    start, count = time.process_time(), 0
    while time.process_time() - start < seconds:
        family.sample(0, "train", count)
        count += 1
    return first, count / (time.process_time() - start)


def shard_speed() -> tuple[float, float]:
    """Text samples per CPU second written to and read from a shard."""
    samples = [FAMILIES["fact_qa"].sample(0, "train", index) for index in range(2000)]
    start = time.process_time()
    data = write_shard(samples)
    written = time.process_time()
    shard = Shard(io.BytesIO(data), "samples")
    for number in range(len(shard)):
        shard[number]
    count = len(shard)
    return count / (written - start), count / (time.process_time() - written)


def harmonic_mean(values: list[float]) -> float:
    """The rate for the same number of samples of each family: slow families weigh as much as they cost."""
    return len(values) / sum(1 / value for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU seconds per family")
    arguments = parser.parse_args()
    rates: dict[str, float] = {}
    for name, family in FAMILIES.items():
        first, rates[name] = measure(family, arguments.seconds)
        print(f"{name:18} {family.modality:6} {rates[name]:9.0f} samples/s, first after {first:.2f} s")
    write_rate, read_rate = shard_speed()
    figures = {
        f"{label}_samples_per_s": round(
            harmonic_mean([rates[name] for name, family in FAMILIES.items() if family.modality in modalities])
        )
        for label, modalities in (("text", {"text"}), ("image", {"image"}), ("video", {"video"}))
    }
    figures |= {"shard_write_samples_per_s": round(write_rate), "shard_read_samples_per_s": round(read_rate)}
    for name, value in figures.items():
        print(f"{name}: {value}")
    if arguments.json:
        print(json.dumps({**figures, "families": {name: round(rate) for name, rate in rates.items()}}))


if __name__ == "__main__":
    main()
