from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.network.config import preset
from model.network.construction import build_on_meta
from model.optimizer.muon_clip import build_optimizer
from model.plan.flops import flop_figures, keys_per_query, muon_step


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_the_optimizers_flops_are_those_counted(name):
    model = build_on_meta(preset(name))
    optimizer = build_optimizer(model, 1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    assert counter.get_total_flops() == pytest.approx(muon_step(preset(name)), rel=0.01)


@pytest.mark.parametrize("tokens", [1, 100, 128, 129, 300, 4096])
def test_a_tile_of_queries_looks_at_no_later_key(tokens):
    seen = [min(tokens, 128 * math.ceil((query + 1) / 128)) for query in range(tokens)]
    assert keys_per_query(tokens) == pytest.approx(sum(seen) / tokens)


def test_training_the_released_shape_costs_about_six_flops_per_active_parameter():
    """The rule of thumb leaves out attention scores and logits computed again, and counts the embedding's rows, which
    multiply nothing."""
    figures = {figure.name: figure.value for figure in flop_figures(preset("k25"), 4096, 1024)}
    active = 32.86e9
    weights = figures["token, training"] - 3 * figures["attention scores"] - figures["head"]
    assert weights == pytest.approx(6 * (active - 163840 * 7168), rel=0.01)
    assert figures["token, training, layers recomputed"] / figures["token, training"] == pytest.approx(4 / 3, rel=0.02)
