"""A training step on a GPU compared with transformers' ``DeepseekV3ForCausalLM``, and what the GPU does in it.

    python tests/benchmarks/gpu_speed.py [--preset small] [--rows 16] [--tokens 1024] [--repeats 5] [--json]

Both sides have the same weights and the same batches; their logits in float32 are compared first. Ours keeps float32
weights and multiplies in bfloat16; transformers' has bfloat16 weights, sdpa attention, torch's fused AdamW and the
fastest of its expert implementations. For ``train_ratio`` both sides use AdamW; for ``train_muonclip_ratio`` ours uses
MuonClip, as in training. The sides take turns; medians count.

``mfu`` is the FLOP/s that forward and backward need (three times the forward's, ``model.plan.flops``), divided by the
dense bfloat16 peak of the data sheet; ``product_tflops`` is what one large product reaches here. ``busy`` is the time
in which kernels run divided by the time of our step; ``grouped_share`` and ``attention_share`` are the shares of this
time that the grouped products of the experts and the fused attention take. Without a GPU nothing is measured.
Expect some minutes on a GPU; this was not timed on one yet.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[2]))

from model.checkpoint.tensor_names import released_tensors  # noqa: E402
from model.network.config import ModelConfig, preset  # noqa: E402
from model.plan.flops import text_forward  # noqa: E402
from tests.benchmarks.model_speed import PEER_EXPERTS, Ours, Theirs, language_model, show, text_batch  # noqa: E402

DENSE_BF16 = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}
"""FLOP/s without sparsity, of the SXM modules (source: NVIDIA's data sheets)."""

SIDE = 8192
PROFILED = 3


def seconds(device: torch.device, run: Callable[[], object]) -> float:
    settle(device)
    start = time.perf_counter()
    run()
    settle(device)
    return time.perf_counter() - start


def settle(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def medians(device: torch.device, sides: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each side's turns; the first two turns do not count."""
    turns = [[seconds(device, side) for side in sides] for _ in range(repeats + 2)][2:]
    return [statistics.median(column) for column in zip(*turns, strict=True)]


def product_flops(device: torch.device) -> float:
    """FLOP/s of one large bfloat16 product."""
    left, right = torch.randn(2, SIDE, SIDE, device=device, dtype=torch.bfloat16)
    return 2 * SIDE**3 / medians(device, [lambda: left @ right], repeats=5)[0]


def kernel_shares(step: Callable[[], object], step_s: float) -> dict[str, float]:
    """The shares of grouped products and of attention in the time of kernels, and this time divided by the step's."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(PROFILED):
            step()
        torch.cuda.synchronize()
    times = [(e.key, e.self_device_time_total / 1e6) for e in seen.key_averages() if e.device_type == DeviceType.CPU]
    total = sum(spent for _, spent in times)

    def share(word: str) -> float:
        return sum(spent for name, spent in times if word in name) / total

    busy = total / PROFILED / step_s
    return {"grouped_share": share("grouped_mm"), "attention_share": share("attention"), "busy": busy}


def training(config: ModelConfig, device: torch.device, rows: int, tokens: int, repeats: int) -> dict[str, Any]:
    """The figures of a training step of the language model, ours and transformers'."""
    model = language_model(config).to(device)
    text = config.text_config
    tensors = {name: value.cpu().clone() for name, value in released_tensors(model.state_dict()).items()}
    batches = itertools.cycle(text_batch(seed, rows, tokens).to(device) for seed in range(4))
    exact = on(device, Theirs(text, tensors, torch.float32, "eager"))
    with torch.no_grad():
        first = next(batches)
        same = float(((model(first) - exact.forward(first)).abs().amax(-1) < 1e-3).float().mean())
    if same < 0.9:  # rounding sends one token in thousands to other experts, and later tokens of its row attend to it
        raise SystemExit(f"the logits are the same at only {same:.0%} of the positions: the measurement is void")
    del exact
    ours = Ours(model)
    peers = [on(device, Theirs(text, tensors, torch.bfloat16, experts)) for experts in PEER_EXPERTS]
    for peer, _ in itertools.product(peers, range(2)):  # allocates
        peer.step(first)
    fastest = min(peers, key=lambda peer: min(seconds(device, lambda: peer.step(first)) for _ in range(3)))
    turns = [ours.step_adamw, ours.step, fastest.step]
    adamw, muonclip, peer = medians(device, [lambda side=side: side(next(batches)) for side in turns], repeats)
    count, per_token = rows * tokens, 3 * text_forward(config, tokens)
    result: dict[str, Any] = {
        "train_ratio": peer / adamw,
        "train_tokens_per_s": count / adamw,
        "peer_train_tokens_per_s": count / peer,
        "peer_train": fastest.name,
        "train_muonclip_ratio": peer / muonclip,
        "train_muonclip_tokens_per_s": count / muonclip,
        "train_tflops": per_token * count / adamw / 1e12,
        "peer_train_tflops": per_token * count / peer / 1e12,
        "same_logits": same,
    }
    if device.type == "cuda":
        result |= kernel_shares(lambda: ours.step_adamw(next(batches)), adamw)
    return result


def on(device: torch.device, side: Theirs) -> Theirs:
    side.model.to(device)  # its optimizer has no state yet
    return side


def utilisation(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """Model FLOP utilisation of both sides; None if the peak of the device is not known."""
    peak = next((flops for word, flops in DENSE_BF16.items() if word in name), None)
    of = {"mfu": result["train_tflops"], "peer_mfu": result["peer_train_tflops"]}
    return {key: None if peak is None else tflops * 1e12 / peak for key, tflops in of.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object")
    options = parser.parse_args()
    result: dict[str, Any] = {"benchmark": "gpu_speed"}
    if torch.cuda.is_available():
        device, name = torch.device("cuda"), torch.cuda.get_device_name()
        result |= {"device": name, "preset": options.preset, "product_tflops": product_flops(device) / 1e12}
        result |= training(preset(options.preset), device, options.rows, options.tokens, options.repeats)
        result |= utilisation(name, result)
    else:
        result["not_measured"] = "no GPU"
    show(result, options.json)


if __name__ == "__main__":
    main()
