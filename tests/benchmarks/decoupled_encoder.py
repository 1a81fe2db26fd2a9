"""What images cost a training step on two ranks, if the ranks divide vision, and if each rank encodes its own images.

The step is ``PlainEngine.backward`` in float32: forward, backward and the sum of gradients over the ranks (gloo), with
one thread and one core per rank. There is no optimizer: its time does not depend on where vision runs, and would hide a
part of the difference. All three batches have one row of 1,024 tokens on each rank, with targets at the same positions:

- text: no images;
- multimodal, decoupled: all images are in the row of rank 0 (10 of three sizes: 66% of its tokens, 33% of all), and the
  ranks divide them (``model.parallel.decoupled_encoder``);
- multimodal, naive: the same rows, and each rank encodes its own images, keeps their activations and needs no second
  forward.

The shapes are those of K2.5 at a thousandth: 34M parameters of the backbone are active for a token (K2.5: 32B), and the
tower has 1.3% of that (K2.5: 417M) with ``--tower paper``. The default tower has twice this share, so that the
difference exceeds the noise: on two ranks the naive placement can lose at most what vision takes, a few percent. The
script prints vision's share of all floating-point operations, the second forward included.

    .venv/bin/python tests/benchmarks/decoupled_encoder.py [--json] [--tower paper] [--repeats 5]

Throughputs are medians over repeats whose order alternates; ratios are medians of the repeats' own ratios to text.
Expect a few minutes on two idle CPU cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2]))

from model.network.batch import (
    Batch,  # noqa: E402
    GridTHW,  # noqa: E402
)
from model.network.config import ModelConfig, preset  # noqa: E402
from model.network.initial import new_model  # noqa: E402
from model.network.vision import media_tokens  # noqa: E402
from model.optimizer.optimization import Optimization  # noqa: E402
from model.parallel.decoupled_encoder import DecoupledEncoder, encoding_cost  # noqa: E402
from model.parallel.ranks import Layout, Ranks  # noqa: E402
from model.plan.flops import text_training  # noqa: E402
from model.plan.parameters import Parameters  # noqa: E402
from model.train.engine import PlainEngine  # noqa: E402
from tests.gloo import on_ranks  # noqa: E402
from tests.training import LOSS  # noqa: E402

ROWS, TOKENS = 1, 1024  # of each rank
IMAGES: list[GridTHW] = [(1, 24, 24), (1, 16, 16), (1, 8, 16), (1, 16, 16), (1, 8, 16)] * 2  # of each row of rank 0
TOWERS = {"default": (128, 4), "paper": (96, 3)}  # width, blocks
KINDS = ("text", "decoupled", "naive")


def shape(tower: str) -> ModelConfig:
    config = preset("tiny").model_copy(deep=True)
    width, blocks = TOWERS[tower]
    text = {"vocab_size": 2048, "hidden_size": 512, "intermediate_size": 1536, "moe_intermediate_size": 512,
            "num_hidden_layers": 10, "num_attention_heads": 8, "num_key_value_heads": 8, "n_routed_experts": 4,
            "num_experts_per_tok": 2, "q_lora_rank": 256, "kv_lora_rank": 128, "qk_nope_head_dim": 64,
            "qk_rope_head_dim": 32, "v_head_dim": 64, "max_position_embeddings": TOKENS,
            "initializer_range": 0.02}  # fmt: skip
    vision = {"vt_hidden_size": width, "vt_num_hidden_layers": blocks, "vt_num_attention_heads": 4,
              "vt_intermediate_size": 4 * width, "mm_hidden_size": width, "text_hidden_size": 512}  # fmt: skip
    config.text_config = config.text_config.model_copy(update=text)
    config.vision_config = config.vision_config.model_copy(update=vision)
    return config


def batches(config: ModelConfig, rank: int) -> tuple[Batch, Batch]:
    """The multimodal rows of this rank, and the same rows without images; one document per row."""
    draw = torch.Generator().manual_seed(rank)
    ids_BT = torch.randint(0, 768, (ROWS, TOKENS), generator=draw)
    pads_BT = torch.zeros(ROWS, TOKENS, dtype=torch.bool)
    gap = (TOKENS - sum(media_tokens(grid) for grid in IMAGES)) // len(IMAGES)
    start = gap
    for grid in IMAGES:  # also on rank 1, so that it has as many targets
        pads_BT[:, start : start + media_tokens(grid)] = True
        start += media_tokens(grid) + gap
    positions_BT = torch.arange(TOKENS).repeat(ROWS, 1)
    next_is_text_BT = torch.cat((~pads_BT[:, 1:], torch.zeros(ROWS, 1, dtype=torch.bool)), dim=1)
    where_N = next_is_text_BT.flatten().nonzero().squeeze(1)
    text = Batch(
        input_ids_BT=ids_BT,
        position_ids_BT=positions_BT,
        document_ids_BT=torch.zeros_like(ids_BT),
        target_positions_N=where_N,
        targets_N=ids_BT.flatten()[where_N + 1],
        vision_N=torch.zeros(len(where_N), dtype=torch.bool),
        sample_N=where_N // TOKENS,
        pixel_values=None,
        grid_thws=[],
    )
    if rank > 0:
        return text, text
    patches = ROWS * sum(t * h * w for t, h, w in IMAGES)
    multimodal = replace(
        text,
        input_ids_BT=ids_BT.masked_fill(pads_BT, config.media_placeholder_token_id),
        vision_N=torch.ones_like(text.vision_N),
        pixel_values=torch.rand(patches, 3, 14, 14, generator=draw),
        grid_thws=IMAGES * ROWS,
    )
    return multimodal, text


def on_rank(rank: int, tower: str, repeats: int) -> dict[str, list[float]]:
    """Kind of batch -> seconds of each repeated step, from the start of all ranks to the end of all."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    config = shape(tower)
    ranks = Ranks(rank, 2, Layout(), dist.group.WORLD)
    engine = PlainEngine(new_model(config).train(), Optimization(1, 1e-3), ranks)
    multimodal, text = batches(config, rank)
    encoders = {"decoupled": engine.encoder, "naive": DecoupledEncoder(engine.model, Ranks())}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for repeat in range(repeats + 1):  # the first warms up
        for kind in KINDS[repeat % 3 :] + KINDS[: repeat % 3]:
            engine.encoder = encoders.get(kind, engine.encoder)
            dist.barrier()
            begun = time.perf_counter()
            engine.backward(text if kind == "text" else multimodal, LOSS)
            dist.barrier()
            if repeat:
                seconds[kind].append(time.perf_counter() - begun)
            engine.discard()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object, last")
    parser.add_argument("--tower", choices=TOWERS, default="default", help="the vision tower's size")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each kind")
    arguments = parser.parse_args()
    config = shape(arguments.tower)
    parts = Parameters(config)
    backbone = 2 * ROWS * TOKENS * text_training(config, TOKENS)
    once = ROWS * sum(encoding_cost(config, grid) for grid in IMAGES)
    share_of_tokens = sum(media_tokens(grid) for grid in IMAGES) / (2 * TOKENS)
    print(
        f"backbone {parts.active / 1e6:.1f}M active parameters, vision tower {parts.vision_tower.total / 1e6:.2f}M, "
        f"projector {parts.projector.total / 1e6:.2f}M; vision tokens {share_of_tokens:.0%}"
    )
    print(
        f"vision's share of the operations: {4 * once / (backbone + 4 * once):.1%} decoupled, "
        f"{3 * once / (backbone + 3 * once):.1%} naive; by operations alone {backbone / (backbone + 4 * once):.3f} "
        f"of text's throughput decoupled, {backbone / (backbone + 6 * once):.3f} naive"
    )
    with tempfile.TemporaryDirectory() as folder:
        seconds, _ = on_ranks(2, on_rank, Path(folder), arguments.tower, arguments.repeats)
    tokens = 2 * ROWS * TOKENS
    for kind in KINDS:
        median = statistics.median(seconds[kind])
        spread = (max(seconds[kind]) - min(seconds[kind])) / median
        print(f"{kind:10} {tokens / median:8,.0f} tokens/s  (step {median:.2f} s, spread {spread:.1%})")
    figures = {
        name: statistics.median(t / s for t, s in zip(seconds["text"], seconds[kind], strict=True))
        for name, kind in (("multimodal_over_text", "decoupled"), ("naive_over_text", "naive"))
    }
    print("  ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
