from __future__ import annotations

import pytest
import torch

from model.network.config import ModelConfig, preset
from model.network.construction import allocate, build_on_meta
from model.network.multimodal import KimiK25
from tests.configs import YARN, changed


def test_parameters_take_no_memory_whatever_the_shape() -> None:
    model = build_on_meta(preset("k25"))
    weights = {name: tensor for name, tensor in model.named_parameters() if not name.endswith("correction_bias")}
    assert all(weight.is_meta for weight in weights.values())
    assert 1.0e12 < sum(weight.numel() for weight in weights.values()) < 1.1e12
    real = [tensor for tensor in (*model.parameters(), *model.buffers()) if not tensor.is_meta]
    assert sum(tensor.numel() for tensor in real) < 10**6


@pytest.mark.parametrize("config", [preset("tiny"), changed(preset("tiny"), {"rope_scaling": YARN})])
def test_tables_have_the_values_that_a_model_built_in_memory_has(config: ModelConfig) -> None:
    model, whole = build_on_meta(config), KimiK25(config)
    allocate(model)
    tables, expected = dict(model.named_buffers()), dict(whole.named_buffers())
    assert tables.keys() == expected.keys() and any(name.endswith("frequencies_r") for name in tables)
    for name, table in tables.items():
        assert torch.equal(table, expected[name]) and table.dtype == expected[name].dtype, name


def test_memory_is_of_the_dtype_asked_for_and_biases_stay_in_float32() -> None:
    model, whole = build_on_meta(preset("tiny")), KimiK25(preset("tiny"))
    allocate(model, torch.bfloat16)
    expected = dict(whole.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.shape == expected[name].shape and not parameter.is_meta
        assert parameter.requires_grad == expected[name].requires_grad
        assert parameter.dtype == (torch.float32 if name.endswith("e_score_correction_bias") else torch.bfloat16)


def test_nothing_is_drawn() -> None:
    before = torch.get_rng_state()
    allocate(build_on_meta(preset("tiny")))
    assert torch.equal(torch.get_rng_state(), before)
