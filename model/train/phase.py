"""One uninterrupted optimisation: its data, length, rates and what learns (source: ours)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from model.data.stream import MixtureStream, StreamState


@dataclass(frozen=True)
class Phase:
    """What a stage passes to ``model.train.loop.train``.

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
        window: context in positions, which is extended by YaRN when the phase begins (``model.context``); 0: as it is.
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
    window: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of ``step`` (0-based)."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        cosine = 0.5 * (1 + math.cos(math.pi * step / max(1, self.steps)))
        return self.learning_rate * warm * (self.final_ratio + (1 - self.final_ratio) * cosine)

    def learns(self, name: str) -> bool:
        """Whether the parameter of that name follows its gradient."""
        moved_by_load = name.endswith("e_score_correction_bias")
        return not moved_by_load and (not self.trainable or any(part in name for part in self.trainable))

    @property
    def learns_attention(self) -> bool:
        """Whether queries and keys learn, so that their logits may have to be clipped."""
        return self.learns("language_model.model.layers.0.self_attn.q_b_proj.weight")

    @property
    def learns_routing(self) -> bool:
        """Whether the routers learn, so that their correction bias follows the load."""
        return self.learns("language_model.model.layers.1.mlp.gate.weight")

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint follows once ``step`` steps are done."""
        return step == self.steps or (self.checkpoint_every > 0 and step % self.checkpoint_every == 0)
