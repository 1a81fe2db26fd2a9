"""Memory: bytes that one rank holds at the peak of a step, with bfloat16 products and float32 weights, gradients and
optimizer (source: ZeRO, arXiv 1910.02054, section 5).

Formulas are written in ``model.plan.figure.SYMBOLS``.
"""

from __future__ import annotations

from model.network.config import ModelConfig
from model.plan.activations import text_bytes, vision_bytes
from model.plan.figure import BYTE, Figure
from model.plan.layout import PlannedLayout, Workload
from model.plan.parameters import Count, Parameters

_ZERO = "arXiv 1910.02054, section 5"
_MIXED = "mixed precision: arXiv 1710.03740, section 3.1"


def tokens_of_rank(layout: PlannedLayout, work: Workload) -> float:
    """Tokens that one rank computes in a step."""
    return work.sequences * work.tokens / layout.sequence


def patches_of_rank(config: ModelConfig, layout: PlannedLayout, work: Workload) -> float:
    """Patches that one rank encodes: images are divided evenly by patches (K2.5 App. C: the encoder is replicated)."""
    merge = config.vision_config.merge_kernel_size
    return tokens_of_rank(layout, work) * work.vision_share * merge[0] * merge[1]


def state_figures(config: ModelConfig, layout: PlannedLayout) -> list[Figure]:
    """Weights, gradients and optimizer state, which stay from step to step, and the bfloat16 copies of weights."""
    parts = Parameters(config)
    gpus, held = layout.gpus, layout.experts
    every, dense, routed = parts.all, parts.dense, parts.routed
    if gpus == 1:
        copies, how = 2.0 * every.products, "2 x parameters of products"
        if layout.recompute:
            copied = largest_layer(parts, layout) + parts.projector
            copies, how = 2.0 * copied.products, "2 x those of the largest layer and the projector"
    elif layout.zero < 3:
        copies, how = 2 * (dense.total + routed.total / held), "2(Pd + Pr/e)"
    else:
        copies, how = 2 * every.total / gpus, "2P/G"
    trained = every.muon + every.adamw
    if layout.zero == 1:
        gradients, spread = 4 * (dense.muon + dense.adamw + routed.muon / held), "4(Pd + Pr/e)"
    else:
        gradients, spread = 4 * trained / gpus, "4P/G"
    return [
        Figure("weights, bfloat16 copy", copies, BYTE, how, _MIXED if gpus == 1 else _ZERO),
        Figure("weights, float32", 4 * every.total / gpus, BYTE, "4P/G", _ZERO),
        Figure("gradients, float32", gradients, BYTE, spread, f"{_ZERO}; float32: K2.5 App. C"),
        Figure(
            "optimizer: Muon's momentum, AdamW's two moments",
            (4 * every.muon + 8 * every.adamw) / gpus,
            BYTE,
            "(4Pm + 8Pa)/G",
            f"{_ZERO}; Moonlight section 2.3",
        ),
    ]


def step_figures(config: ModelConfig, layout: PlannedLayout, work: Workload) -> list[Figure]:
    """Activations and buffers, which are freed within a step."""
    parts, tokens = Parameters(config), tokens_of_rank(layout, work)
    recompute = layout.recompute
    text = tokens * text_bytes(config, work.tokens, parts.dense_layers, recompute=recompute)
    patches = patches_of_rank(config, layout, work)
    figures = [
        Figure(
            "activations, language model",
            text,
            BYTE,
            "t(4DL + max(one layer - 4D, head))" if recompute else "t(layers + head)",
            "arXiv 1604.06174, section 4" if recompute else "sums of the activations table",
        ),
        Figure(
            "activations, vision",
            patches * vision_bytes(config, recompute=recompute),
            BYTE,
            "4 * share * t(4wb + ends)" if recompute else "4 * share * t(b blocks + ends)",
            "K2.5 App. C; ours",
        ),
    ]
    buffers, formula = _buffers(parts, layout)
    if buffers:
        figures.append(Figure("buffers: layers as a whole", buffers, BYTE, formula, "arXiv 2304.11277, section 3.3"))
    return figures


def largest_layer(parts: Parameters, layout: PlannedLayout) -> Count:
    """The layer with the most parameters, or the head; of the experts, only those that one rank holds."""
    text = parts.config.text_config
    experts = text.n_routed_experts // layout.experts + text.n_shared_experts
    ffns = [parts.dense_ffn] if parts.dense_layers else []
    ffns += [parts.expert * experts + parts.router] if parts.expert_layers else []
    return max([parts.head, *(parts.attention + ffn for ffn in ffns)], key=lambda count: count.total)


def _buffers(parts: Parameters, layout: PlannedLayout) -> tuple[float, str]:
    """Weights gathered (ZeRO-3: this layer's and the next one's), gradients before they are divided (ZeRO-2 and 3)."""
    if layout.gpus == 1 or layout.zero == 1:
        return 0.0, ""
    layer = largest_layer(parts, layout).total
    return (4 * layer, "4 x largest layer") if layout.zero == 2 else ((4 + 2 * 2) * layer, "(4 + 2*2) x largest layer")


def update_figure(config: ModelConfig, layout: PlannedLayout) -> Figure:
    """Muon's update and its bfloat16 iterate, once the activations are freed."""
    muon = Parameters(config).all.muon
    return Figure("Muon's updates", 6 * muon / layout.gpus, BYTE, "(4 + 2)Pm/G", "ours")


def peak(config: ModelConfig, layout: PlannedLayout, work: Workload) -> float:
    """Bytes when the backward begins or when the optimizer steps, whichever are more."""
    states = sum(figure.value for figure in state_figures(config, layout))
    step = sum(figure.value for figure in step_figures(config, layout, work))
    return states + max(step, update_figure(config, layout).value)
