"""How weights follow their gradients in one uninterrupted training (source: ours)."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Optimization:
    """What a training engine is opened with (``model.train.engine``).

    Attributes:
        steps: optimizer steps.
        learning_rate: peak; reached after ``warmup_steps``, then a cosine down to ``final_ratio`` of it.
        trainable: a parameter learns if its name contains one of these; if there are none, all parameters learn.
        bias_update_rate: of the router's correction bias, per step (Megatron-Bridge: 1e-3).
        weight_decay: of matrices (K2: 0.1).
        products: precision of the matrix products, "float32", or "bfloat16" where the processor multiplies it
            (``model.network.precision.narrow_products``).
        expert_precision: "int4" trains the routed experts for an INT4 export (``model.network.quantization``), "full"
            does not.
        micro_batch_tokens: most tokens of a micro-batch, which has at least one row. A rank's rows go through forward
            and backward in micro-batches, whose gradients add up; 0: all rows at once.
    """

    steps: int
    learning_rate: float
    warmup_steps: int = 20
    final_ratio: float = 0.1
    trainable: tuple[str, ...] = ()
    bias_update_rate: float = 1e-3
    weight_decay: float = 0.1
    products: str = "float32"
    expert_precision: str = "full"
    micro_batch_tokens: int = 0

    @classmethod
    def constant(cls, steps: int, learning_rate: float, **settings: object) -> Optimization:
        """One learning rate from the first step to the last."""
        return cls(steps, learning_rate, warmup_steps=0, final_ratio=1.0, **settings)  # type: ignore[arg-type]

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
