"""Floating-point operations of the matrix products: a multiply-add is two; elementwise work is not counted.

Formulas are written in ``model.plan.figure.SYMBOLS``.
"""

from __future__ import annotations

from model.network.config import ModelConfig
from model.plan.figure import FLOP, Figure
from model.plan.parameters import Parameters

# Queries are taken in tiles of this many, and a tile reads no later key (model.network.packed_attention,
# FlashAttention).
TILE = 128
NEWTON_SCHULZ_STEPS = 5

_KAPLAN = "arXiv 2001.08361, section 2.1"
_TILES = "arXiv 2205.14135, Algorithm 1; causal tiles of 128"


def keys_per_query(tokens: int) -> float:
    """Keys that a query is multiplied with, on average over a causal row of ``tokens``."""
    tile = min(TILE, tokens)
    whole, rest = divmod(tokens, tile)
    return (tile * tile * whole * (whole + 1) / 2 + rest * tokens) / tokens


def patch_embedding(config: ModelConfig) -> int:
    """The patch embedding's forward, one patch."""
    vision = config.vision_config
    return 2 * 3 * vision.patch_size**2 * vision.vt_hidden_size


def vision_blocks_forward(config: ModelConfig, patches: int) -> int:
    """The vision tower's blocks, one image of ``patches`` patches."""
    vision = config.vision_config
    block = 2 * Parameters(config).vision_block.products + 4 * patches * vision.vt_hidden_size
    return patches * vision.vt_num_hidden_layers * block


def vision_forward(config: ModelConfig, patches: int) -> int:
    """Vision tower and projector, one image of ``patches`` patches."""
    merge = config.vision_config.merge_kernel_size[0] * config.vision_config.merge_kernel_size[1]
    merged = patches // merge * 2 * Parameters(config).projector.products
    return patches * patch_embedding(config) + vision_blocks_forward(config, patches) + merged


def vision_training(config: ModelConfig, patches: int, *, recompute: bool = False) -> int:
    """Forward and backward of one image; ``recompute`` runs the blocks' forward once more. Pixels need no gradient."""
    again = vision_blocks_forward(config, patches) if recompute else 0
    return 3 * vision_forward(config, patches) - patches * patch_embedding(config) + again


def text_layers_forward(config: ModelConfig, tokens: int) -> float:
    """The decoder's layers, one token of a row of ``tokens``."""
    text, parts = config.text_config, Parameters(config)
    weights = parts.attention.products * text.num_hidden_layers + parts.dense_ffn.products * parts.dense_layers
    chosen = text.num_experts_per_tok + text.n_shared_experts
    weights += (parts.expert.products * chosen + parts.router.muon) * parts.expert_layers
    return 2 * weights + attention_scores(config, tokens) * text.num_hidden_layers


def attention_scores(config: ModelConfig, tokens: int) -> float:
    """One layer's products of queries with keys and of scores with values, one token of a row of ``tokens``."""
    text = config.text_config
    return 2 * text.num_attention_heads * (text.qk_head_dim + text.v_head_dim) * keys_per_query(tokens)


def text_forward(config: ModelConfig, tokens: int) -> float:
    """One token of a row of ``tokens``, its logits included."""
    return text_layers_forward(config, tokens) + 2 * Parameters(config).head.products


def text_training(config: ModelConfig, tokens: int, *, recompute: bool = False) -> float:
    """Forward and backward of one token. The loss's backward computes the logits again, and ``recompute`` the layers.

    The scores that a fused kernel computes again are not counted, as in PaLM's utilisation (arXiv 2204.02311, App. B).
    """
    again = text_layers_forward(config, tokens) if recompute else 0
    return 3 * text_forward(config, tokens) + 2 * Parameters(config).head.products + again


def newton_schulz(rows: int, columns: int) -> int:
    """Muon's iteration on one matrix."""
    small, large = sorted((rows, columns))
    return NEWTON_SCHULZ_STEPS * (4 * small**2 * large + 2 * small**3)


def muon_step(config: ModelConfig) -> int:
    """One optimizer step, over all matrices; an expert's gate and up projection are one matrix."""
    text, vision, parts = config.text_config, config.vision_config, Parameters(config)
    hidden, heads, width = text.hidden_size, text.num_attention_heads, vision.vt_hidden_size

    def swiglu(inner: int) -> int:
        return 2 * newton_schulz(inner, hidden) + newton_schulz(hidden, inner)

    attention = (
        newton_schulz(text.q_lora_rank, hidden)
        + newton_schulz(heads * text.qk_head_dim, text.q_lora_rank)
        + newton_schulz(text.kv_lora_rank + text.qk_rope_head_dim, hidden)
        + newton_schulz(heads * (text.qk_nope_head_dim + text.v_head_dim), text.kv_lora_rank)
        + newton_schulz(hidden, heads * text.v_head_dim)
    )
    expert = newton_schulz(2 * text.moe_intermediate_size, hidden) + newton_schulz(hidden, text.moe_intermediate_size)
    mixture = expert * text.n_routed_experts + swiglu(text.moe_intermediate_size * text.n_shared_experts)
    mixture += newton_schulz(text.n_routed_experts, hidden)
    block = newton_schulz(3 * width, width) + newton_schulz(width, width)
    block += 2 * newton_schulz(width, vision.vt_intermediate_size)
    merged = width * vision.merge_kernel_size[0] * vision.merge_kernel_size[1]
    projector = newton_schulz(merged, merged) + newton_schulz(hidden, merged)
    layers = attention * text.num_hidden_layers + swiglu(text.intermediate_size) * parts.dense_layers
    return layers + mixture * parts.expert_layers + block * vision.vt_num_hidden_layers + projector


def flop_figures(config: ModelConfig, tokens: int, patches: int) -> list[Figure]:
    """Figures for one token of a row of ``tokens``, one image of ``patches``, and one optimizer step."""
    text, parts = config.text_config, Parameters(config)
    layers = text.num_hidden_layers
    attended = f"{keys_per_query(tokens):g} keys of {tokens}"
    ffn = 2 * parts.dense_ffn.products * parts.dense_layers
    chosen = text.num_experts_per_tok + text.n_shared_experts
    mixtures = 2 * (parts.expert.products * chosen + parts.router.muon) * parts.expert_layers
    return [
        Figure(
            "attention projections",
            2 * parts.attention.products * layers,
            FLOP,
            "2L(Dq + qHh + D(c+r) + cH(n+v) + HvD)",
            _KAPLAN,
        ),
        Figure(
            "attention scores",
            attention_scores(config, tokens) * layers,
            FLOP,
            f"2LH(h+v) x {attended}, (T + 128)/2",
            _TILES,
        ),
        Figure("dense FFN", ffn, FLOP, "2 * 3DI * Ld", _KAPLAN),
        Figure("experts and router", mixtures, FLOP, "2(3DF(k+S) + ED)Lm", _KAPLAN),
        Figure("head", 2 * parts.head.products, FLOP, "2VD", _KAPLAN),
        Figure("token, forward", text_forward(config, tokens), FLOP, "sum of the above", _KAPLAN),
        Figure(
            "token, training",
            text_training(config, tokens),
            FLOP,
            "3 * forward + 2VD",
            "arXiv 2001.08361, section 2.1; logits again: ours (model.network.target_logprobs)",
        ),
        Figure(
            "token, training, layers recomputed",
            text_training(config, tokens, recompute=True),
            FLOP,
            "the above + layers' forward",
            "arXiv 1604.06174, section 4",
        ),
        Figure(
            f"image of {patches} patches, forward",
            vision_forward(config, patches),
            FLOP,
            "p(2*3*patch^2*w + b(2(4w^2 + 2wf) + 4pw)) + p/4 * 2*4w(4w + D)",
            "K2.5 section 2; ours",
        ),
        Figure(
            f"image of {patches} patches, training",
            vision_training(config, patches),
            FLOP,
            "3 * forward - p*2*3*patch^2*w",
            "ours: pixels need no gradient",
        ),
        Figure(
            f"image of {patches} patches, training, blocks recomputed",
            vision_training(config, patches, recompute=True),
            FLOP,
            "the above + p*b(2(4w^2 + 2wf) + 4pw)",
            "arXiv 1604.06174, section 4",
        ),
        Figure(
            "optimizer step (Newton-Schulz)",
            muon_step(config),
            FLOP,
            "sum over n x m matrices, n <= m: 5(4n^2 m + 2n^3)",
            "Moonlight, arXiv 2502.16982, section 2.1; ours",
        ),
    ]
