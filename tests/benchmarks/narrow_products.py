"""What bfloat16 products with float32 weights cost in learning, on the joint mixture.

    python tests/benchmarks/narrow_products.py [--seeds 3] [--steps 250] [--json]

The tiny preset learns text and vision from the generators, twice from the same initial weights on the same batches: in
float32, and with bfloat16 products, as in training. ``difference`` is the held-out loss of bfloat16 minus that of
float32; ``curve_difference`` is the mean difference of the training losses over the last quarter. They are means over
seeds, in nats per token; the spread (standard deviation) of float32 over the seeds is there for comparison. Expect
about two minutes per seed on one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from components.prepare_data.config import Config as DataConfig  # noqa: E402
from components.prepare_data.stage import tokenizer_texts  # noqa: E402
from model.codec.image import ImageConfig  # noqa: E402
from model.codec.tokenizer import Tokenizer  # noqa: E402
from model.data.batches.packing import RowPacker  # noqa: E402
from model.data.families import FAMILIES  # noqa: E402
from model.data.order.family_shares import TEXT, VISION  # noqa: E402
from model.data.order.shares import blend  # noqa: E402
from model.data.samples.sample import Split  # noqa: E402
from model.data.samples.tokenize import tokenize  # noqa: E402
from model.network import precision  # noqa: E402
from model.network.batch import Batch  # noqa: E402
from model.network.config import preset  # noqa: E402
from model.network.initial import new_model  # noqa: E402
from model.network.multimodal import KimiK25  # noqa: E402
from model.optimizer.optimization import Optimization  # noqa: E402
from model.train.engine import PlainEngine  # noqa: E402
from tests.training import take_step  # noqa: E402

MIXTURE = blend((TEXT, 0.65), (VISION, 0.35))
ROWS, TOKENS, RATE = 4, 256, 6e-3
HELD_OUT = 40  # batches


def batches(tokenizer: Tokenizer, split: Split, seed: int, count: int) -> list[Batch]:
    """``count`` batches of samples; the mixture gives each family's share of the samples."""
    rng, made = np.random.default_rng(seed), []
    names, shares = list(MIXTURE), np.array(list(MIXTURE.values()))
    index, image_config = 0, ImageConfig()

    def drawn() -> Iterator:
        nonlocal index
        while True:
            index += 1
            family = FAMILIES[rng.choice(names, p=shares / shares.sum())]
            yield tokenize(family.sample(seed, split, index), tokenizer, image_config)

    samples = drawn()
    while len(made) < count:
        packer = RowPacker(TOKENS, ROWS)
        while packer.add(next(samples)):
            pass
        made.append(packer.batch(tokenizer.pad_id))
    return made


@torch.no_grad()
def held_out_loss(model: KimiK25, held_out: list[Batch]) -> float:
    model.eval()
    logprobs = torch.cat([model.logprobs(batch) for batch in held_out])
    return -float(logprobs.mean())


def learn(seed: int, products: str, training: list[Batch], held_out: list[Batch]) -> tuple[float, list[float]]:
    """Held-out loss in float32 at the end, and the training losses."""
    model = new_model(preset("tiny"), seed=seed).train()
    # Also on a CPU without instructions for bfloat16, slowly.
    with mock.patch.object(precision, "multiplies_bfloat16", lambda: True):
        engine = PlainEngine(model, Optimization(len(training), RATE, products=products))
        losses = [take_step(engine, batch, step)["loss/total"] for step, batch in enumerate(training)]
    return held_out_loss(model, held_out), losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.train(tokenizer_texts(DataConfig()), DataConfig().tokenizer_ranks)
    held_out = batches(tokenizer, "eval", 0, HELD_OUT)
    wide, differences, curves = [], [], []
    for seed in range(options.seeds):
        training = batches(tokenizer, "train", seed, options.steps)
        exact, exact_curve = learn(seed, "float32", training, held_out)
        narrow, narrow_curve = learn(seed, "bfloat16", training, held_out)
        last = options.steps // 4
        gaps = [b - a for a, b in zip(exact_curve[-last:], narrow_curve[-last:], strict=True)]
        wide.append(exact)
        differences.append(narrow - exact)
        curves.append(statistics.mean(gaps))
        if not options.json:
            print(f"seed {seed}: float32 {exact:.4f}  bfloat16 {narrow:.4f}  curve {curves[-1]:+.4f}", flush=True)
    result = {
        "benchmark": "narrow_products",
        "seeds": options.seeds,
        "steps": options.steps,
        "float32_loss": round(statistics.mean(wide), 4),
        "float32_spread": round(statistics.stdev(wide), 4) if options.seeds > 1 else None,
        "difference": round(statistics.mean(differences), 4),
        "difference_spread": round(statistics.stdev(differences), 4) if options.seeds > 1 else None,
        "curve_difference": round(statistics.mean(curves), 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
