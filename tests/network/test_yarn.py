from __future__ import annotations

import pytest
import torch

from model.boundary.errors import MoonflowError
from model.data.batches.packing import pack
from model.network.config import RopeScaling, preset
from model.network.forward_context import ForwardContext
from model.network.initial import new_model
from model.network.multimodal import KimiK25
from model.network.yarn import extend_context, original_window
from tests.configs import changed
from tests.drawn import sample


def made_with(window: int) -> KimiK25:
    """The preset with YaRN from the start."""
    yarn = RopeScaling(factor=window / 256, original_max_position_embeddings=256)
    config = changed(preset("tiny"), {"rope_scaling": yarn, "max_position_embeddings": window})
    model = new_model(config, seed=3).eval()
    model.load_state_dict(new_model(preset("tiny"), seed=3).state_dict())  # first weights follow the rotation
    return model


def logits(model: KimiK25, products: torch.dtype | None = None) -> torch.Tensor:
    batch = pack([sample(0, 300)], pad_id=1023)
    with torch.no_grad():
        return model(batch, ForwardContext(products))


@pytest.mark.parametrize("products", [None, torch.bfloat16])
@pytest.mark.parametrize("windows", [(1024,), (512, 1024), (1024, 512)])
def test_an_extended_model_is_one_made_so(windows, products):
    model = new_model(preset("tiny"), seed=3).eval()
    plain = logits(model, products)
    for window in windows:
        extend_context(model, window)
    same = made_with(windows[-1])
    assert model.config == same.config and original_window(model) == 256
    assert torch.equal(logits(model, products), logits(same, products))
    assert not torch.equal(logits(model, products), plain)


def test_the_softmax_is_as_sharp_as_yarn_asks():
    model = new_model(preset("tiny"), seed=3)
    extend_context(model, 1024)
    # YaRN's temperature for a factor of 4: 0.1 ln 4 + 1, squared since it scales queries and keys.
    expected = 32**-0.5 * 1.1386294361**2
    for attention in model.attentions():
        assert attention.config.softmax_scale == pytest.approx(expected)


def test_a_config_that_someone_holds_stays_as_it_is():
    model = new_model(preset("tiny"), seed=3)
    held = model.config
    extend_context(model, 512)
    assert held == preset("tiny") and held.text_config.rope_scaling is None
    assert model.config.text_config.max_position_embeddings == 512


def test_a_context_does_not_shrink():
    with pytest.raises(MoonflowError, match="context of 256 positions cannot be extended to 256"):
        extend_context(new_model(preset("tiny"), seed=3), 256)
