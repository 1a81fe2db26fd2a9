from __future__ import annotations

import pytest
import torch

from model.config import preset
from model.data.packing import pack
from model.data.tokenize import TokenizedSample
from model.multimodal import KimiK25
from tests.peers import randomise

CONFIG = preset("tiny")
PAD = CONFIG.media_placeholder_token_id


def sample(seed: int, *parts: int | tuple[int, int, int]) -> TokenizedSample:
    """Random text of the lengths given and random media of the grids given, in order; all text is trained on."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    for part in parts:
        if isinstance(part, int):
            ids += torch.randint(0, 768, (part,), generator=generator).tolist()
        else:
            ids += [PAD] * (part[1] * part[2] // 4)
    grids = [part for part in parts if not isinstance(part, int)]
    patches = sum(t * h * w for t, h, w in grids)
    pixels = torch.rand(patches, 3, 14, 14, generator=generator) if grids else None
    input_ids = torch.tensor(ids)
    return TokenizedSample(input_ids, input_ids != PAD, pixels, grids)


SAMPLES = [
    sample(0, 3, (1, 4, 4), 4),
    sample(1, 9),
    sample(2, 2, (4, 2, 4), 3, (1, 2, 2), 2),
    sample(3, 1, (1, 4, 4), 1),
]


def make() -> KimiK25:
    model = KimiK25(CONFIG)
    randomise(model, seed=1, std=0.08)
    return model.eval()


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


def test_the_seed_fixes_the_weights():
    first, second, third = KimiK25(CONFIG, seed=3), KimiK25(CONFIG, seed=3), KimiK25(CONFIG, seed=4)
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
        assert torch.isfinite(a).all(), name
    weight = "language_model.lm_head.weight"
    assert not torch.equal(first.state_dict()[weight], third.state_dict()[weight])


def test_gradients_reach_every_part():
    model = make().train()
    model(pack(SAMPLES, CONFIG.pad_token_id)).logsumexp(-1).mean().backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert idle == {f"language_model.model.layers.{n}.mlp.gate.e_score_correction_bias" for n in (1, 2, 3)}
    assert model.auxiliary_loss() > 0
