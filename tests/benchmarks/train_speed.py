"""Training tokens per second of our text step, next to transformers' ``DeepseekV3ForCausalLM`` with torch's AdamW.

    python tests/benchmarks/train_speed.py [--rows 16] [--tokens 256] [--steps 5] [--threads 1] [--json]

Both have the tiny preset's text shape, the same weights and the same batches; before anything is timed their logits are
compared. They take turns, step by step, and the median step counts. Ours is also split into forward and backward,
MuonClip, and what torch's AdamW would cost on the same parameters, so that the optimizer's price is seen apart. Of
transformers, the fastest of its expert implementations is taken. Expect about a minute on one CPU core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))

from model.config import preset  # noqa: E402
from model.data.packing import Batch  # noqa: E402
from model.hf import released_tensors  # noqa: E402
from model.multimodal import KimiK25  # noqa: E402
from model.train.loop import Phase, batch_loss  # noqa: E402
from model.train.optimizer import build_optimizer, qk_clip  # noqa: E402
from tests.peers import peer_language_model  # noqa: E402

EXPERT_IMPLEMENTATIONS = ("eager", "grouped_mm")
LEARNING_RATE = 1e-3


def text_batch(ids_BT: Tensor) -> Batch:
    """One document a row; every token but the first is a target."""
    rows, tokens = ids_BT.shape
    where = torch.arange(rows * tokens).view(rows, tokens)[:, :-1].flatten()
    targets = ids_BT[:, 1:].flatten()
    positions, documents = torch.arange(tokens).repeat(rows, 1), torch.zeros_like(ids_BT)
    vision = torch.zeros(len(targets), dtype=torch.bool)
    return Batch(ids_BT, positions, documents, where, targets, vision, where // tokens, None, [])


class Ours:
    """Our model with MuonClip; ``seconds`` of the last step's parts."""

    def __init__(self, model: KimiK25) -> None:
        self.model = model.train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("language_model.") and "e_score" not in name)
        self.learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = build_optimizer(model, LEARNING_RATE)
        self.adamw = torch.optim.AdamW([torch.zeros_like(p, requires_grad=True) for p in self.learned], LEARNING_RATE)
        self.seconds: dict[str, float] = {}

    def step(self, batch: Batch) -> float:
        start = time.perf_counter()
        loss, _ = batch_loss(self.model, batch)
        loss.backward()
        torch.nn.utils.get_total_norm([parameter.grad for parameter in self.learned if parameter.grad is not None])
        middle = time.perf_counter()
        self.optimizer.step()
        qk_clip(self.model.attentions())
        for router in self.model.routers():
            router.update_bias(Phase.bias_update_rate)
        self.seconds = {"forward_backward": middle - start, "muonclip": time.perf_counter() - middle}
        self._time_adamw()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def _time_adamw(self) -> None:
        """torch's AdamW on parameters and gradients of the same shapes; it changes nothing of the model."""
        for twin, parameter in zip(self.adamw.param_groups[0]["params"], self.learned, strict=True):
            twin.grad = parameter.grad
        start = time.perf_counter()
        self.adamw.step()
        self.seconds["adamw"] = time.perf_counter() - start

    @torch.no_grad()
    def forward(self, batch: Batch) -> Tensor:
        return self.model(batch)


class Theirs:
    def __init__(self, model: nn.Module) -> None:
        self.model = model.train()
        self.optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
        self.seconds: dict[str, float] = {}

    def step(self, batch: Batch) -> float:
        start = time.perf_counter()
        logits = self.model(batch.input_ids_BT, use_cache=False).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets_N)
        loss.backward()
        middle = time.perf_counter()
        self.optimizer.step()
        self.seconds = {"forward_backward": middle - start, "adamw": time.perf_counter() - middle}
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    @torch.no_grad()
    def forward(self, batch: Batch) -> Tensor:
        return self.model(batch.input_ids_BT, use_cache=False).logits[:, :-1].flatten(0, 1)


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def fastest_peer(tensors: dict[str, Tensor], batch: Batch) -> tuple[nn.Module, str]:
    text = preset("tiny").text_config
    found = []
    for implementation in EXPERT_IMPLEMENTATIONS:
        peer = peer_language_model(text, tensors, "sdpa")
        peer.set_experts_implementation(implementation)
        trial = Theirs(peer)
        trial.step(batch)
        found.append((timed(lambda trial=trial: trial.step(batch)), implementation))
    chosen = min(found)[1]
    peer = peer_language_model(text, tensors, "sdpa")
    peer.set_experts_implementation(chosen)
    return peer, chosen


def measure(options: argparse.Namespace) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    draw = [
        torch.randint(0, 768, (options.rows, options.tokens), generator=generator) for _ in range(options.steps + 1)
    ]
    batches = [text_batch(ids) for ids in draw]
    model = KimiK25(preset("tiny"), seed=0)
    tensors = {name: value.clone() for name, value in released_tensors(model).items()}
    peer, implementation = fastest_peer(tensors, batches[0])
    ours, theirs = Ours(model), Theirs(peer)

    difference = float((ours.forward(batches[0]) - theirs.forward(batches[0])).abs().max())
    if difference > 1e-3:
        raise SystemExit(f"the logits differ by {difference}: the measurement is void")
    forward: dict[str, list[float]] = {"ours": [], "theirs": []}
    for batch in batches[1:]:
        forward["ours"].append(timed(lambda batch=batch: ours.forward(batch)))
        forward["theirs"].append(timed(lambda batch=batch: theirs.forward(batch)))

    parts: dict[str, list[float]] = {}
    for number, batch in enumerate(batches):
        losses = [side.step(batch) for side in (ours, theirs)]
        if number == 0:  # warms up allocators and optimizer states
            print(f"first losses {losses[0]:.4f} (with balance loss) and {losses[1]:.4f}", file=sys.stderr)
            continue
        for name, side in (("ours", ours), ("theirs", theirs)):
            for part, seconds in side.seconds.items():
                parts.setdefault(f"{name}/{part}", []).append(seconds)
    count = options.rows * options.tokens
    median = {name: statistics.median(values) for name, values in parts.items()}
    own, peers = median["ours/forward_backward"], median["theirs/forward_backward"] + median["theirs/adamw"]
    forwards = {name: statistics.median(values) for name, values in forward.items()}
    return {
        "rows": options.rows,
        "tokens_per_row": options.tokens,
        "steps": options.steps,
        "threads": options.threads,
        "transformers_experts": implementation,
        "logit_difference": difference,
        "ours_step_tokens_per_s": count / (own + median["ours/muonclip"]),
        "ours_step_with_adamw_tokens_per_s": count / (own + median["ours/adamw"]),
        "theirs_step_tokens_per_s": count / peers,
        "step_ratio": peers / (own + median["ours/muonclip"]),
        "step_ratio_both_adamw": peers / (own + median["ours/adamw"]),
        "ours_forward_tokens_per_s": count / forwards["ours"],
        "theirs_forward_tokens_per_s": count / forwards["theirs"],
        "forward_ratio": forwards["theirs"] / forwards["ours"],
        "seconds": median,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256, help="tokens of each row")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = measure(options)
    if not options.json:
        for name, value in result.items():
            print(f"{name:36} {value:.3f}" if isinstance(value, float) else f"{name:36} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
