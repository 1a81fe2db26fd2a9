from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from model.network.config import preset
from model.network.multimodal import KimiK25
from model.optimizer.muon_clip import build_optimizer
from model.plan.layout import PlannedLayout
from model.plan.memory import state_figures

ALONE = PlannedLayout(gpus=1, zero=1, experts=1, sequence=1, recompute=False)


def size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize(("name", "device"), [("tiny", "cpu"), ("tiny", "meta"), ("small", "meta")])
def test_states_take_the_bytes_of_the_real_tensors(name, device):
    with torch.device(device):
        model = KimiK25(preset(name))
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(not parameter_name.endswith("e_score_correction_bias"))
    optimizer = build_optimizer(model, 1e-3)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    _, weights, gradients, moments = (figure.value for figure in state_figures(preset(name), ALONE))
    assert size(model.parameters()) == weights
    assert size(parameter.grad for parameter in trained) == gradients
    assert size(optimizer.named_state().values()) == pytest.approx(moments, rel=1e-3)
