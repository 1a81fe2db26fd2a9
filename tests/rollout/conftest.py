from __future__ import annotations

import pytest
import torch

from model.network.config import preset
from model.network.initial import new_model
from model.network.multimodal import KimiK25


@pytest.fixture(scope="session")
def tiny_model() -> KimiK25:
    """The tiny preset with weights large enough that its samples are neither uniform nor constant."""
    torch.set_num_threads(1)
    model = new_model(preset("tiny"), seed=7).eval()
    with torch.no_grad():
        for parameter in model.language_model.parameters():
            parameter.mul_(2.5 if parameter.dim() > 1 else 1.0)
    return model
