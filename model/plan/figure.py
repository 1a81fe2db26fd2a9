"""One planned quantity and how it is computed (source: ours)."""

from __future__ import annotations

from dataclasses import dataclass

BYTE, FLOP, COUNT = "B", "FLOP", "parameters"

# The symbols of the formulas, for the keys of config.json and the sizes of a step.
SYMBOLS = (
    "D hidden_size, V vocab_size, L num_hidden_layers (Ld dense, Lm with experts), I intermediate_size, "
    "F moe_intermediate_size, E n_routed_experts, k num_experts_per_tok, S n_shared_experts, H num_attention_heads, "
    "q q_lora_rank, c kv_lora_rank, n qk_nope_head_dim, r qk_rope_head_dim, h = n + r, v v_head_dim; of vision: "
    "w vt_hidden_size, b vt_num_hidden_layers, f vt_intermediate_size, p patches of an image; of a step: T tokens of a "
    "sequence, G GPUs, e expert-parallel, s sequence-parallel, d = G/e, t = batch * T/s tokens of a GPU; parameters: "
    "P all, Pr of routed experts, Pd of the rest, Pm trained by Muon, Pa by AdamW"
)


@dataclass(frozen=True)
class Figure:
    """``value`` in ``unit`` ("B", "FLOP" or "parameters"), its formula in ``SYMBOLS``, and the formula's source."""

    name: str
    value: float
    unit: str
    formula: str
    source: str
