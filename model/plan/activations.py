"""Activation memory: bytes that a forward keeps for its backward, with bfloat16 products and float32 residuals
(source: ours, from what each operation's derivative reads; the method is that of arXiv 2205.05198, section 4).

Tensors of a few bytes per token (positions, loss weights) are left out. Formulas are written in
``model.plan.figure.SYMBOLS``.
"""

from __future__ import annotations

from model.network.config import ModelConfig
from model.plan.figure import BYTE, Figure
from model.plan.flops import keys_per_query

# The attention scores of rows up to this long are kept (model.network.packed_attention, on a CPU). For longer rows, and
# with a fused kernel on an accelerator, one sum per query is kept and the scores are computed again (FlashAttention).
LONGEST_KEPT = 1024

_OURS = "ours: what the derivative reads"
_FLASH = "arXiv 2205.14135, section 3.1; ours"


def attention_bytes(config: ModelConfig, tokens: int) -> float:
    """One layer's attention with its norm, one token of a row of ``tokens``."""
    text = config.text_config
    norm = 6 * text.hidden_size + 4
    latents = 4 * text.q_lora_rank + 4 * text.kv_lora_rank + 2 * text.qk_rope_head_dim + 8
    heads = 2 * text.num_attention_heads * (2 * text.qk_head_dim + 2 * text.v_head_dim)
    scores = 2 * keys_per_query(tokens) if tokens <= LONGEST_KEPT else 4
    return norm + latents + heads + text.num_attention_heads * scores


def dense_ffn_bytes(config: ModelConfig) -> int:
    """A dense layer's FFN with its norm, one token."""
    text = config.text_config
    return 6 * text.hidden_size + 4 + 6 * text.intermediate_size


def mixture_bytes(config: ModelConfig) -> int:
    """Router, chosen experts and shared expert with their norm, one token."""
    text = config.text_config
    router = 4 * text.hidden_size + 8 * text.n_routed_experts + 16 * text.num_experts_per_tok
    pair = 4 * text.hidden_size + 6 * text.moe_intermediate_size + 20
    shared = 6 * text.moe_intermediate_size * text.n_shared_experts
    return 6 * text.hidden_size + 4 + router + text.num_experts_per_tok * pair + shared


def head_bytes(config: ModelConfig) -> int:
    """Last norm, head and loss, one token with a target; logits are computed again (model.network.target_logprobs)."""
    return 6 * config.text_config.hidden_size + 16


def vision_block_bytes(config: ModelConfig) -> int:
    """One block of the vision tower, one patch."""
    vision = config.vision_config
    return 38 * vision.vt_hidden_size + 4 * vision.vt_intermediate_size + 4 * vision.vt_num_attention_heads + 16


def vision_ends_bytes(config: ModelConfig) -> int:
    """Pixels, last norm and projector, one patch of an image (a clip merges four frames into one before the norm)."""
    vision = config.vision_config
    return 12 * vision.patch_size**2 + 14 * vision.vt_hidden_size + 16


def largest_layer_bytes(config: ModelConfig, tokens: int) -> float:
    """The decoder layer that keeps the most bytes, one token."""
    return attention_bytes(config, tokens) + max(mixture_bytes(config), dense_ffn_bytes(config))


def text_bytes(config: ModelConfig, tokens: int, dense_layers: int, *, recompute: bool) -> float:
    """The language model, one token of a row of ``tokens``, at the peak.

    The peak is when the backward begins; with ``recompute``, when memory holds the inputs of all layers and one layer's
    forward, which was computed again.
    """
    text = config.text_config
    if recompute:
        layer_input = 4 * text.hidden_size  # a layer's input is among what its forward keeps; the head is gone by then
        return layer_input * text.num_hidden_layers + max(
            largest_layer_bytes(config, tokens) - layer_input, head_bytes(config)
        )
    mixtures = text.num_hidden_layers - dense_layers
    layers = attention_bytes(config, tokens) * text.num_hidden_layers
    return layers + dense_ffn_bytes(config) * dense_layers + mixture_bytes(config) * mixtures + head_bytes(config)


def vision_bytes(config: ModelConfig, *, recompute: bool) -> float:
    """Vision tower and projector, one patch; with ``recompute``, what is kept while the language model's backward runs,
    which is the peak."""
    vision = config.vision_config
    blocks = vision.vt_num_hidden_layers
    if recompute:
        return vision_ends_bytes(config) + 4 * vision.vt_hidden_size * blocks
    return vision_ends_bytes(config) + vision_block_bytes(config) * blocks


def activation_figures(config: ModelConfig, tokens: int) -> list[Figure]:
    """Figures for one token of a row of ``tokens`` in one layer, and for one patch."""
    scores = "2 * keys" if tokens <= LONGEST_KEPT else "4"
    return [
        Figure(
            "attention of a layer, token",
            attention_bytes(config, tokens),
            BYTE,
            f"6D + 4q + 4c + 2r + 4H(h+v) + H * {scores} + 12",
            _OURS if tokens <= LONGEST_KEPT else _FLASH,
        ),
        Figure("dense FFN of a layer, token", dense_ffn_bytes(config), BYTE, "6D + 6I + 4", _OURS),
        Figure(
            "experts of a layer, token",
            mixture_bytes(config),
            BYTE,
            "10D + 8E + k(4D + 6F + 36) + 6FS + 4",
            _OURS,
        ),
        Figure("head and loss, token", head_bytes(config), BYTE, "6D + 16", _OURS),
        Figure(
            "layer's input, token (all that recomputation keeps)",
            4 * config.text_config.hidden_size,
            BYTE,
            "4D",
            "arXiv 1604.06174, section 4",
        ),
        Figure("vision block, patch", vision_block_bytes(config), BYTE, "38w + 4f + 4 heads + 16", _OURS),
        Figure("pixels and projector, patch", vision_ends_bytes(config), BYTE, "12 patch^2 + 14w + 16", _OURS),
    ]
