"""Bytes sent, against the collectives played through by hand."""

from __future__ import annotations

import pytest
import torch

from model.network.config import preset
from model.plan.layout import PlannedLayout, Workload
from model.plan.parameters import Parameters
from model.plan.traffic import traffic_figures

TINY = preset("tiny")


def planned(layout: PlannedLayout, work: Workload) -> dict[str, float]:
    return {figure.name.split(",")[0]: figure.value for figure in traffic_figures(TINY, layout, work)}


def ring(elements: int, ranks: int) -> int:
    """Elements that one rank of a ring hands on until all have all of them, or all have summed their share."""
    shares = [elements // ranks + (share < elements % ranks) for share in range(ranks)]
    return sum(shares[(0 - hop) % ranks] for hop in range(ranks - 1))


@pytest.mark.parametrize(("zero", "gathers"), [(1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize("experts", [1, 2, 4])
def test_weights_and_gradients_go_around_rings(zero, gathers, experts):
    parts, gpus = Parameters(TINY), 8
    got = planned(PlannedLayout(gpus, zero, experts, 1, False), Workload(256))
    hops = ring(parts.dense.total, gpus) + ring(parts.routed.total // experts, gpus // experts)
    assert got["gradients"] == pytest.approx(4 * hops, rel=1e-4)
    assert got["weights"] == pytest.approx(2 * gathers * hops, rel=1e-4)


@pytest.mark.parametrize("recompute", [False, True])
def test_chosen_experts_on_other_ranks_get_the_token_and_send_it_back(recompute):
    ranks, tokens, text = 4, 4096, TINY.text_config
    generator = torch.Generator().manual_seed(0)
    chosen_NK = torch.rand(tokens, text.n_routed_experts, generator=generator).topk(text.num_experts_per_tok).indices
    away = int((chosen_NK // (text.n_routed_experts // ranks) != 0).sum())  # those of rank 0
    there_and_back = 2 * (3 if recompute else 2)  # forward, its repetition, backward
    sent = away * text.hidden_size * 2 * there_and_back * 3  # layers with experts
    got = planned(PlannedLayout(8, 1, ranks, 1, recompute), Workload(tokens))
    assert got["experts"] == pytest.approx(sent, rel=0.02)


@pytest.mark.parametrize("recompute", [False, True])
def test_heads_are_swapped_for_tokens(recompute):
    ranks, tokens, sequences = 4, 256, 3
    own = tokens // ranks * sequences
    sent = 0
    for other in range(1, ranks):  # rank 0 sends each of the others its one of the four heads, for its own tokens
        query, key, value, answer = 16 + 16, 16, 32, 32
        sent += own * (query + key + value + answer) * 1 * (other > 0)
        sent += own * 16  # and the rope key, which all heads share
    sent *= 2 * 4 * (3 if recompute else 2)  # bytes, layers, passes
    got = planned(PlannedLayout(8, 1, 1, ranks, recompute), Workload(tokens, sequences))
    assert got["sequence"] == sent
    assert planned(PlannedLayout(8, 1, 1, 1, recompute), Workload(tokens, sequences))["sequence"] == 0


def test_one_gpu_sends_nothing():
    assert set(planned(PlannedLayout(1, 1, 1, 1, False), Workload(256)).values()) == {0}
