"""Traffic: bytes that one rank sends in a step. To gather or reduce X bytes, each rank of a ring of n sends X(n-1)/n
(source: ZeRO, arXiv 1910.02054, section 7).

Formulas are written in ``model.plan.figure.SYMBOLS``.
"""

from __future__ import annotations

from model.network.config import ModelConfig
from model.plan.figure import BYTE, Figure
from model.plan.layout import PlannedLayout, Workload
from model.plan.memory import tokens_of_rank
from model.plan.parameters import Parameters


def _sent(ranks: int) -> float:
    return (ranks - 1) / ranks


def traffic_figures(config: ModelConfig, layout: PlannedLayout, work: Workload) -> list[Figure]:
    """Figures for each kind of communication in a step."""
    parts, text = Parameters(config), config.text_config
    tokens, copies = tokens_of_rank(layout, work), layout.expert_replicas

    def rings(dense: int, routed: int) -> float:
        return dense * _sent(layout.gpus) + routed / layout.experts * _sent(copies)

    everything = rings(parts.dense.total, parts.routed.total)
    gathers = 2 if layout.zero == 3 else 1
    rounds = 3 if layout.recompute else 2  # forward, backward, and the forward that is computed again
    pairs = tokens * text.num_experts_per_tok * text.hidden_size * 2 * _sent(layout.experts)
    heads = text.num_attention_heads * (text.qk_head_dim + text.qk_nope_head_dim + 2 * text.v_head_dim)
    swapped = tokens * 2 * (heads * _sent(layout.sequence) + text.qk_rope_head_dim * (layout.sequence - 1))
    whole = "Pd(G-1)/G + Pr/e * (d-1)/d"
    return [
        Figure("gradients, reduce-scatter", 4 * everything, BYTE, f"4({whole})", "arXiv 1910.02054, section 7"),
        Figure(
            "weights, all-gather",
            2 * gathers * everything,
            BYTE,
            f"{'2 * ' if gathers == 2 else ''}2({whole})",
            "arXiv 1910.02054, section 7",
        ),
        Figure(
            "Muon, all-gather of whole matrices",
            2 * rings(parts.dense.muon, parts.routed.muon),
            BYTE,
            f"2({whole}), of Muon's",
            "Moonlight, arXiv 2502.16982, section 2.3",
        ),
        Figure(
            "experts, all-to-all",
            2 * rounds * parts.expert_layers * pairs,
            BYTE,
            f"{rounds} * 2Lm * 2tkD(e-1)/e",
            "arXiv 2006.16668, section 3",
        ),
        Figure(
            "sequence, all-to-all of heads",
            rounds * text.num_hidden_layers * swapped,
            BYTE,
            f"{rounds}L * 2t(H(h+n+2v)(s-1)/s + r(s-1))",
            "arXiv 2309.14509, section 3.2; MLA's shared key: ours",
        ),
    ]


def traffic(config: ModelConfig, layout: PlannedLayout, work: Workload) -> float:
    """Bytes that one rank sends in a step, all kinds together."""
    return sum(figure.value for figure in traffic_figures(config, layout, work))
