"""The model's speed compared with transformers' ``DeepseekV3ForCausalLM``, and packed vision compared with padded.

    python tests/benchmarks/model_speed.py [--repeats 5] [--threads 2] [--json]

Language model: both sides have the same weights and the same batches of 16 x 256 tokens, at the tiny preset's shape and
at one four times as wide. Transformers uses torch's fused AdamW, sdpa attention and the fastest of its expert
implementations in float32 and bfloat16; ours keeps float32 weights, multiplies in bfloat16 where the CPU has
instructions for it, and gives each thread some of the rows. For ``train_ratio`` both sides use AdamW; for
``train_muonclip_ratio`` ours uses MuonClip, as in training, and theirs AdamW. The logits in float32 are compared before
anything is timed. Decoding is greedy with a cache, for 16 prompts that grow to 512 tokens. Vision: images of very
unequal sizes pass the tower as they are, and padded to the largest. The sides take turns; medians count. Last comes the
memory of forwards over one long row of two documents.
Expect about five minutes on two idle CPU cores.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))

from model.checkpoint.tensor_names import released_tensors  # noqa: E402
from model.network.batch import Batch, GridTHW  # noqa: E402
from model.network.config import ModelConfig, TextConfig, preset  # noqa: E402
from model.network.forward_context import ForwardContext  # noqa: E402
from model.network.initial import new_model  # noqa: E402
from model.network.multimodal import KimiK25  # noqa: E402
from model.network.precision import narrow_products  # noqa: E402
from model.optimizer.optimization import Optimization  # noqa: E402
from model.rollout.embedded import EmbeddedEngine  # noqa: E402
from model.rollout.protocol import Request  # noqa: E402
from model.train.engine import PlainEngine  # noqa: E402
from tests.long_forward import LONG_FORWARD  # noqa: E402
from tests.peers import peer_language_model  # noqa: E402
from tests.training import add_gradient, take_step  # noqa: E402

ROWS, TOKENS = 16, 256
CONTEXT, NEW = 512, 64
LONG_TOKENS = (4096, 16384, 32768)
RATE = 1e-3
NARROW = ForwardContext(narrow_products(torch.device("cpu")))
PAUSE = 0.02  # seconds, in which OpenMP's threads of the turn before stop to spin
PEER_EXPERTS = ("eager", "grouped_mm")
DECODE_EXPERTS = (*PEER_EXPERTS, "batched_mm")  # it copies an expert per token: a training batch is too large for it


def widened(times: int) -> ModelConfig:
    """The tiny preset with the same depth and head sizes, everything else ``times`` as wide."""
    grown = ("hidden_size", "intermediate_size", "moe_intermediate_size", "num_attention_heads", "num_key_value_heads",
             "q_lora_rank", "kv_lora_rank")  # fmt: skip
    config = preset("tiny").model_copy(deep=True)
    text = config.text_config
    wide = {key: getattr(text, key) * times for key in grown}
    config.text_config = text.model_copy(update={**wide, "max_position_embeddings": CONTEXT})
    config.vision_config.text_hidden_size = config.text_config.hidden_size
    return config


def language_model(config: ModelConfig) -> KimiK25:
    model, generator = new_model(config, seed=0), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.language_model.named_parameters():
            if "down_proj" in name:  # they start as zeros, and a comparison of logits would mean nothing
                weight.normal_(0.0, config.text_config.initializer_range, generator=generator)
    return model


def text_batch(seed: int, rows: int = ROWS, tokens: int = TOKENS) -> Batch:
    """Random tokens, one document per row; every token but the first is a target."""
    ids_BT = torch.randint(0, 768, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    where_N = torch.arange(rows * tokens).view(rows, tokens)[:, :-1].flatten()
    positions_BT, documents_BT = torch.arange(tokens).repeat(rows, 1), torch.zeros_like(ids_BT)
    vision_N = torch.zeros(len(where_N), dtype=torch.bool)
    return Batch(ids_BT, positions_BT, documents_BT, where_N, ids_BT[:, 1:].flatten(), vision_N, where_N // tokens,
                 None, [])  # fmt: skip


class Ours:
    """Our model and the step of the training loop."""

    def __init__(self, model: KimiK25) -> None:
        self.model = model.train()
        settings = Optimization(10**9, RATE, warmup_steps=0, trainable=("language_model.",), products="bfloat16")
        self.muonclip = PlainEngine(model, settings)
        self.replicas = self.muonclip.replicas
        self.adamw = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], RATE, fused=True)

    def step(self, batch: Batch) -> float:
        """A step with MuonClip, as in training."""
        return take_step(self.muonclip, batch)["loss/total"]

    def step_adamw(self, batch: Batch) -> float:
        """With the optimizer of the other side."""
        figures = add_gradient(self.replicas, batch, context=NARROW)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return figures["loss/total"]

    def forward(self, batch: Batch) -> Tensor:
        parts = self.replicas.split(batch)
        shape = len(batch.targets_N), self.model.config.text_config.vocab_size
        logits_NV = torch.empty(shape, dtype=torch.bfloat16)
        whole = list(zip(parts, logits_NV.split([len(part.targets_N) for part in parts]), strict=True))

        @torch.inference_mode()
        def logits(model: KimiK25, part: tuple[Batch, Tensor]) -> None:
            part[1].copy_(model(part[0], NARROW))

        self.replicas.run(logits, whole)
        return logits_NV


class Theirs:
    """Transformers' model, with its weights in ``dtype``."""

    def __init__(self, text: TextConfig, tensors: dict[str, Tensor], dtype: torch.dtype, experts: str) -> None:
        self.name = f"{str(dtype).removeprefix('torch.')}, {experts}"
        self.model: nn.Module = peer_language_model(text, tensors, "sdpa").to(dtype).train()
        self.model.set_experts_implementation(experts)  # type: ignore[operator]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), RATE, fused=True)

    def step(self, batch: Batch) -> float:
        logits_NV = self.model(batch.input_ids_BT, use_cache=False).logits[:, :-1].flatten(0, 1)
        loss = F.cross_entropy(logits_NV.float(), batch.targets_N)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        return self.model(batch.input_ids_BT, use_cache=False).logits[:, :-1].flatten(0, 1)


def seconds(run: Callable[[], object]) -> float:
    time.sleep(PAUSE)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def fastest(sides: Sequence[Theirs], run: Callable[[Theirs], object]) -> Theirs:
    for side in sides:
        run(side)  # allocates, and compiles kernels
    return min(sides, key=lambda side: min(seconds(lambda: run(side)), seconds(lambda: run(side))))


def ratio(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """How many times as fast ours is, and the median seconds of ours and theirs; the first turn does not count."""
    taken = [(seconds(ours), seconds(theirs)) for _ in range(repeats + 1)][1:]
    own, peer = (statistics.median(column) for column in zip(*taken, strict=True))
    return peer / own, own, peer


def language(times: int, repeats: int) -> dict[str, object]:
    """Training step and forward of the language model."""
    model = language_model(widened(times))
    text = model.config.text_config
    tensors = {name: value.clone() for name, value in released_tensors(model.state_dict()).items()}
    peers = [Theirs(text, tensors, dtype, experts)
             for dtype, experts in itertools.product((torch.float32, torch.bfloat16), PEER_EXPERTS)]  # fmt: skip
    four = [text_batch(seed) for seed in range(4)]
    batches, first = itertools.cycle(four), four[0]
    with torch.no_grad():
        difference = float((model(first) - peers[0].forward(first)).abs().max())
    if difference > 1e-3:
        raise SystemExit(f"the logits differ by {difference}: the measurement is void")
    ours = Ours(model)
    for _ in range(4):  # the experts' numbers of rows differ between batches, and each new shape is compiled once
        ours.forward(next(batches)), ours.step(next(batches))
    for each in (model, *(peer.model for peer in peers)):
        each.eval()
    reader = fastest(peers, lambda side: side.forward(first))
    # One forward is too short for a turn.
    forward = ratio(lambda: [*map(ours.forward, four)], lambda: [*map(reader.forward, four)], repeats)
    for each in (model, *(peer.model for peer in peers)):
        each.train()
    trainer = fastest(peers, lambda side: side.step(first))
    train = ratio(lambda: ours.step_adamw(next(batches)), lambda: trainer.step(next(batches)), repeats)
    muonclip = ratio(lambda: ours.step(next(batches)), lambda: trainer.step(next(batches)), repeats)
    count = ROWS * TOKENS
    return {
        "train_ratio": train[0],
        "train_tokens_per_s": count / train[1],
        "peer_train_tokens_per_s": count / train[2],
        "peer_train": trainer.name,
        "train_muonclip_ratio": muonclip[0],
        "train_muonclip_tokens_per_s": count / muonclip[1],
        "forward_ratio": forward[0],
        "forward_tokens_per_s": count * len(four) / forward[1],
        "peer_forward_tokens_per_s": count * len(four) / forward[2],
        "peer_forward": reader.name,
        "logit_difference": difference,
    }


def decoding(repeats: int) -> dict[str, object]:
    """Greedy generation up to a context of ``CONTEXT`` tokens."""
    model = language_model(widened(1)).eval()
    tensors = released_tensors(model.state_dict())
    ids_BT = torch.randint(0, 768, (ROWS, CONTEXT - NEW), generator=torch.Generator().manual_seed(0))
    exact, engine = EmbeddedEngine(model, ROWS), EmbeddedEngine(model, ROWS, prompt_products=NARROW.products)
    requests = [Request(ids, max_new_tokens=NEW, temperature=0.0) for ids in ids_BT.tolist()]
    peers = [Theirs(model.config.text_config, tensors, dtype, experts)
             for dtype, experts in itertools.product((torch.float32, torch.bfloat16), DECODE_EXPERTS)]  # fmt: skip

    def ours(engine: EmbeddedEngine = engine) -> Tensor:
        return torch.tensor([completion.token_ids for completion in asyncio.run(engine.generate(requests))])

    @torch.inference_mode()
    def theirs(side: Theirs) -> Tensor:
        generated_BT = side.model.eval().generate(  # type: ignore[operator]
            ids_BT, attention_mask=torch.ones_like(ids_BT), do_sample=False, min_new_tokens=NEW, max_new_tokens=NEW,
            pad_token_id=model.config.pad_token_id,
        )  # fmt: skip
        return generated_BT[:, CONTEXT - NEW :]

    same = float((ours(exact) == theirs(peers[0])).float().mean())
    if same < 0.9:  # random weights have ties; with a wrong cache tokens would agree only by chance
        raise SystemExit(f"only {same:.0%} of the tokens agree: the measurement is void")
    peer = fastest(peers, theirs)
    faster, own, other = ratio(ours, lambda: theirs(peer), repeats)
    count = ROWS * NEW
    return {
        "decode_ratio": faster,
        "decode_tokens_per_s": count / own,
        "peer_decode_tokens_per_s": count / other,
        "peer_decode": peer.name,
        "decode_same_tokens": same,
    }


def vision(repeats: int) -> dict[str, object]:
    """Many small images and a few large ones, packed, and padded with blank patches to the largest."""
    tower = new_model(preset("tiny"), seed=0).vision_tower.eval()
    generator = torch.Generator().manual_seed(0)
    spread = torch.exp(0.9 * torch.randn(96, 2, generator=generator))
    sides = (2 * spread.round().clamp(min=1, max=8).int()).tolist()
    grids: list[GridTHW] = [(1, height, width) for height, width in sides]
    height, width = (max(side[axis] for side in sides) for axis in range(2))
    images = [torch.randn(h * w, 3, 14, 14, generator=generator) for _, h, w in grids]
    packed = torch.cat(images)
    padded_grids: list[GridTHW] = [(1, height, width)] * len(grids)
    padded = torch.zeros(len(grids), height, width, 3, 14, 14)
    for canvas, image, (_, h, w) in zip(padded, images, grids, strict=True):
        canvas[:h, :w] = image.view(h, w, 3, 14, 14)
    everything = padded.flatten(0, 2)

    @torch.inference_mode()
    def ours() -> Tensor:
        return tower(packed, grids)

    @torch.inference_mode()
    def theirs() -> Tensor:
        return tower(everything, padded_grids)

    useful = sum(h * w for _, h, w in grids)
    faster, own, other = ratio(ours, theirs, repeats)
    return {
        "packing_fill": useful / len(packed),
        "padded_fill": useful / len(everything),
        "packing_ratio": faster,
        "packed_images_per_s": len(grids) / own,
        "padded_images_per_s": len(grids) / other,
    }


def long_forwards() -> dict[str, object]:
    """MiB that a forward with its loss needs in addition to the model, measured in a new process for each length."""
    root = Path(__file__).parents[2]
    taken = [subprocess.run([sys.executable, "-c", LONG_FORWARD, str(tokens)], cwd=root, capture_output=True, text=True,
                            check=True).stdout for tokens in LONG_TOKENS]  # fmt: skip
    return {"long_tokens": list(LONG_TOKENS), "long_forward_mib": [int(text) >> 20 for text in taken]}


def show(result: Mapping[str, object], only_json: bool) -> None:
    """Print one line per figure, unless ``only_json``, and all figures as one JSON object."""
    result = {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in result.items()}
    if not only_json:
        for name, value in result.items():
            print(f"{name:32} {value}")
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    wide = {f"wide_{name}": value for name, value in language(4, options.repeats).items()}
    result = {
        "benchmark": "model_speed",
        "threads": options.threads,
        "cores": len(os.sched_getaffinity(0)),
        **language(1, options.repeats),
        **wide,
        **decoding(options.repeats),
        **vision(options.repeats),
        **long_forwards(),
    }
    show(result, options.json)


if __name__ == "__main__":
    main()
