"""The supervised training loop: stream -> loss -> MuonClip -> checkpoint, resumable to the bit (source: ours).

One loop serves every pre-training stage and SFT; what differs between them (mixture, row length, rates, which
parameters learn) is in the ``Phase``s that their ``stage.py`` passes in.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.data.packing import Batch
from model.data.stream import MixtureStream, StreamState
from model.hf import load_weights
from model.multimodal import KimiK25
from model.precision import products_in
from model.quantization import experts_in
from model.train.checkpoint import load_checkpoint, read_state, save_checkpoint
from model.train.optimizer import MuonClip, build_optimizer, qk_clip
from model.train.protocol import Surroundings

LOG_EVERY = 10  # steps between logged metrics


@dataclass(frozen=True)
class Phase:
    """One uninterrupted optimisation.

    Attributes:
        stream: opens the phase's data at its beginning (None) or at a saved state.
        steps: optimizer steps.
        learning_rate: peak; reached after ``warmup_steps``, then a cosine down to ``final_ratio`` of it.
        trainable: parts whose names are in a parameter's name make it learn; empty means all.
        bias_update_rate: of the router's correction bias, per step (Megatron-Bridge: 1e-3).
        weight_decay: of matrices (K2: 0.1).
        checkpoint_every: steps between saved states; 0 saves only at the end.
        products: precision of the matrix products, "float32" or "bfloat16" (``model.precision``).
        expert_precision: "int4" trains the routed experts for an INT4 export (``model.quantization``), "full" does not.
    """

    stream: Callable[[StreamState | None], MixtureStream]
    steps: int
    learning_rate: float
    warmup_steps: int = 20
    final_ratio: float = 0.1
    trainable: tuple[str, ...] = ()
    bias_update_rate: float = 1e-3
    weight_decay: float = 0.1
    checkpoint_every: int = 0
    products: str = "float32"
    expert_precision: str = "full"

    def rate(self, step: int) -> float:
        """Learning rate of ``step`` (0-based)."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        cosine = 0.5 * (1 + math.cos(math.pi * step / max(1, self.steps)))
        return self.learning_rate * warm * (self.final_ratio + (1 - self.final_ratio) * cosine)

    def learns(self, name: str) -> bool:
        moved_by_load = name.endswith("e_score_correction_bias")
        return not moved_by_load and (not self.trainable or any(part in name for part in self.trainable))

    def saves_at(self, step: int) -> bool:
        return step == self.steps or (self.checkpoint_every > 0 and step % self.checkpoint_every == 0)


@dataclass
class LoopState:
    """What the loop itself remembers between processes; ``step`` counts within ``phase``."""

    phase: int = 0
    step: int = 0
    saved: int = 0
    tokens_seen: int = 0
    seconds: float = 0.0


def batch_loss(model: KimiK25, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """Mean cross-entropy over the targets plus the balance loss; and its parts by modality, in nats per token."""
    losses_N = -model.logprobs(batch).float()
    loss = losses_N.mean() + model.auxiliary_loss()
    figures: dict[str, float] = {}
    for name, chosen_N in (("loss/vision", batch.vision_N), ("loss/text", ~batch.vision_N)):
        if chosen_N.any():
            figures[name] = float(losses_N.detach()[chosen_N].mean())
    return loss, figures


def train(model: KimiK25, phases: Sequence[Phase], tokenizer_folder: Path, around: Surroundings) -> LoopState:
    """Run the phases in order, from this step's newest checkpoint if there is one; the last checkpoint is complete.

    Each phase starts a fresh optimizer. A run that was killed and started again ends with the same weights, bit for
    bit, as one that was not.
    """
    loop, found = LoopState(), around.checkpoints.latest()
    if found is not None:
        loop = LoopState(**read_state(found)["loop"])
    total_steps = sum(phase.steps for phase in phases)
    model.train()
    for number, phase in enumerate(phases):
        if number < loop.phase:
            continue
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(phase.learns(name))
        optimizer = build_optimizer(model, phase.learning_rate, weight_decay=phase.weight_decay)
        position = None
        if found is not None and loop.step < phase.steps:
            position = StreamState(**load_checkpoint(found, model, optimizer)["data_position"])
        elif found is not None:  # it was saved at this phase's end
            load_weights(model, found)
        done_before = sum(earlier.steps for earlier in phases[:number])
        begun = time.perf_counter() - loop.seconds
        for batch, after in phase.stream(position).batches(phase.steps - loop.step):
            figures = optimizer_step(model, batch, optimizer, phase, loop.step)
            loop.step += 1
            loop.tokens_seen += batch.tokens
            loop.seconds = time.perf_counter() - begun
            speed = loop.tokens_seen / loop.seconds
            around.progress.update(done_before + loop.step, total_steps, loss=figures["loss/total"], tokens_per_s=speed)
            if loop.step % LOG_EVERY == 0 or loop.step == phase.steps:
                around.metrics.log(
                    {**figures, "tokens/s": speed, "tokens/seen": loop.tokens_seen}, done_before + loop.step
                )
            if phase.saves_at(loop.step):
                loop.saved += 1
                folder = around.work / f"checkpoint-{loop.saved}"
                save_checkpoint(
                    folder, model, tokenizer_folder, optimizer, {"loop": vars(loop), "data_position": vars(after)}
                )
                last = done_before + loop.step == total_steps
                around.checkpoints.save(folder, index=loop.saved - 1, tokens_seen=loop.tokens_seen, complete=last)
                shutil.rmtree(folder)
        found = None
        loop.phase, loop.step = number + 1, 0
    return loop


def optimizer_step(model: KimiK25, batch: Batch, optimizer: MuonClip, phase: Phase, step: int) -> dict[str, float]:
    """One step on one batch: loss, gradient, MuonClip, router bias; returns its figures."""
    optimizer.set_learning_rate(phase.rate(step))
    products = torch.bfloat16 if phase.products == "bfloat16" else None
    with products_in(products), experts_in(phase.expert_precision):
        loss, figures = batch_loss(model, batch)
    loss.backward()
    gradient_norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    clipped = qk_clip(model.attentions()) if phase.learns("self_attn.q_b_proj.weight") else 0
    for router in model.routers():
        router.update_bias(phase.bias_update_rate if phase.learns("mlp.gate.weight") else 0.0)
    own = {"loss/total": float(loss.detach()), "learning_rate": phase.rate(step), "gradient_norm": float(gradient_norm)}
    return {**figures, **own, "qk_clip/heads": float(clipped)}
