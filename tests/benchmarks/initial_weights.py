"""How soon copying from context emerges, from the initial weights as they are and from random ones alone.

    python tests/benchmarks/initial_weights.py [--steps 150] [--seeds 3] [--json]

The tiny preset learns random strings that repeat: the loss is ln(700) = 6.55 nats for a guess and near 0 for a model
that copies. Mean over the last 10 steps, mean and spread over seeds. About one minute a seed and kind on one CPU core.
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

from model.config import preset
from model.data.packing import Batch, RowPacker
from model.data.tokenize import TokenizedSample
from model.multimodal import KimiK25
from model.train.engine import PlainEngine
from model.train.phase import Phase

TOKENS = 700  # that strings are made of
RATE = 6e-3


def repeated(generator: torch.Generator) -> TokenizedSample:
    """8 to 39 random tokens, again and again; the loss covers what the first time determines."""
    length = int(torch.randint(8, 40, (1,), generator=generator))
    ids = torch.randint(0, TOKENS, (length,), generator=generator).repeat(max(2, 120 // length))
    return TokenizedSample(ids, torch.arange(len(ids)) >= length, None, [])


def batch(generator: torch.Generator, pad_id: int) -> Batch:
    packer = RowPacker(256, 4)
    while packer.add(repeated(generator)):
        pass
    return packer.batch(pad_id)


def final_loss(seed: int, steps: int, wired: bool) -> float:
    with mock.patch("model.initial._wire", lambda *_: None) if not wired else mock.MagicMock():
        model = KimiK25(preset("tiny"), seed=seed).train()
    engine = PlainEngine(model, Phase(lambda state: NotImplemented, steps, RATE))
    generator = torch.Generator().manual_seed(seed)
    pad_id = model.config.text_config.pad_token_id
    losses = [engine.step(batch(generator, pad_id), step)["loss/total"] for step in range(steps)]
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
