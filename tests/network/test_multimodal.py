from __future__ import annotations

import pytest
import torch

from model.data.batches.packing import pack
from model.data.samples.tokenize import TokenizedSample
from model.network.config import preset
from model.network.multimodal import KimiK25
from tests.drawn import random_model, sample

CONFIG = preset("tiny")


SAMPLES = [
    sample(0, 3, (1, 4, 4), 4),
    sample(1, 9),
    sample(2, 2, (4, 2, 4), 3, (1, 2, 2), 2),
    sample(3, 1, (1, 4, 4), 1),
]


def make() -> KimiK25:
    return random_model(CONFIG, seed=1)


@torch.no_grad()
def test_packed_samples_have_the_logits_they_have_alone():
    model = make()
    batch = pack(SAMPLES, CONFIG.pad_token_id, tokens_per_row=22)
    packed = model(batch)
    assert batch.input_ids_BT.shape[0] < len(SAMPLES)
    for number, one in enumerate(SAMPLES):
        alone = pack([one], CONFIG.pad_token_id, tokens_per_row=32)
        mine = batch.sample_N == number
        assert torch.equal(batch.targets_N[mine], alone.targets_N)
        torch.testing.assert_close(packed[mine], model(alone), atol=2e-4, rtol=1e-3)


@torch.no_grad()
def test_an_image_changes_what_follows_it_and_nothing_before():
    model, one = make(), SAMPLES[0]
    other = TokenizedSample(one.input_ids, one.loss_mask, -one.pixel_values, one.grid_thws)
    here, there = (model(pack([each], CONFIG.pad_token_id)) for each in (one, other))
    before = 2  # targets of the first three tokens
    torch.testing.assert_close(here[:before], there[:before], atol=1e-5, rtol=1e-5)
    assert (here[before:] - there[before:]).abs().amax(1).min() > 1e-3


def test_as_many_pads_as_features():
    one = SAMPLES[0]
    broken = TokenizedSample(one.input_ids[1:4], one.loss_mask[1:4], one.pixel_values, one.grid_thws)
    with pytest.raises(ValueError, match="2 media pads|1 media pads"):
        make()(pack([broken], CONFIG.pad_token_id))


def test_gradients_reach_every_part():
    model = make().train()
    model(pack(SAMPLES, CONFIG.pad_token_id)).logsumexp(-1).mean().backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert idle == {f"language_model.model.layers.{n}.mlp.gate.e_score_correction_bias" for n in (1, 2, 3)}
    assert model.auxiliary_loss() > 0
