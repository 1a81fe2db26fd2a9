"""How soon a model learns to copy from its context, from our initial weights and from plain random ones.

    python tests/benchmarks/initial_weights.py [--steps 150] [--seeds 3] [--json]

The tiny preset learns random strings that repeat: a guess has a loss of ln(700) = 6.55 nats, a model that copies one
near 0. The figures are the mean loss of the last 10 steps, as mean and spread over seeds. Expect about one minute per
seed and kind on one CPU core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from model.data.batches.packing import RowPacker
from model.data.samples.tokenize import TokenizedSample
from model.network.batch import Batch
from model.network.config import preset
from model.network.initial import new_model
from model.optimizer.optimization import Optimization
from model.train.engine import PlainEngine
from tests.training import take_step

TOKENS = 700  # number of different tokens in the strings
RATE = 6e-3


def repeated(generator: torch.Generator) -> TokenizedSample:
    """8 to 39 random tokens, repeated several times; the loss covers the repetitions."""
    length = int(torch.randint(8, 40, (1,), generator=generator))
    ids = torch.randint(0, TOKENS, (length,), generator=generator).repeat(max(2, 120 // length))
    return TokenizedSample(ids, torch.arange(len(ids)) >= length, None, [])


def batch(generator: torch.Generator, pad_id: int) -> Batch:
    packer = RowPacker(256, 4)
    while packer.add(repeated(generator)):
        pass
    return packer.batch(pad_id)


def final_loss(seed: int, steps: int, wired: bool) -> float:
    with (
        mock.patch("model.network.initial.place_induction_circuit", lambda *_: None) if not wired else mock.MagicMock()
    ):
        model = new_model(preset("tiny"), seed=seed).train()
    engine = PlainEngine(model, Optimization(steps, RATE))
    generator = torch.Generator().manual_seed(seed)
    pad_id = model.config.text_config.pad_token_id
    losses = [take_step(engine, batch(generator, pad_id), step)["loss/total"] for step in range(steps)]
    return statistics.mean(losses[-10:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, float | int | str] = {"benchmark": "initial_weights", "steps": options.steps}
    for kind in ("random", "wired"):
        losses = [final_loss(seed, options.steps, kind == "wired") for seed in range(options.seeds)]
        result[f"{kind}_loss"] = round(statistics.mean(losses), 3)
        result[f"{kind}_spread"] = round(statistics.pstdev(losses), 3)
        if not options.json:
            print(f"{kind:<8}{result[f'{kind}_loss']:>8} nats  +- {result[f'{kind}_spread']}", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
