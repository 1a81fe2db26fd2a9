from __future__ import annotations

import pytest
import torch

from model.checkpoint.tensor_names import released_tensors
from model.network.config import RopeScaling, preset
from model.network.documents import Documents
from model.network.multimodal import KimiK25
from tests.configs import YARN, changed
from tests.drawn import random_model
from tests.peers import peer_language_model


def model_with(scaling: RopeScaling | None = None) -> KimiK25:
    return random_model(changed(preset("tiny"), {"rope_scaling": scaling}), seed=4, std=0.1)


@torch.no_grad()
def logits(
    model: KimiK25, input_ids_BT: torch.Tensor, positions_BT: torch.Tensor, documents_BT: torch.Tensor
) -> torch.Tensor:
    decoder = model.language_model
    x_BTD = decoder.model.embed_tokens(input_ids_BT)
    return decoder.lm_head(decoder.model(x_BTD, positions_BT, Documents.of(documents_BT)))


@pytest.mark.parametrize("scaling", [None, YARN], ids=["plain", "yarn"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_equal_those_of_transformers(scaling, attention):
    model = model_with(scaling)
    peer = peer_language_model(model.config.text_config, released_tensors(model.state_dict()), attention)
    ids = torch.randint(0, 1024, (2, 23), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = peer(ids).logits
    got = logits(model, ids, torch.arange(23).expand(2, -1), torch.zeros_like(ids))
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-4)


def test_packed_documents_have_the_logits_they_have_alone():
    model = model_with()
    ids = torch.randint(0, 1024, (1, 16), generator=torch.Generator().manual_seed(1))
    documents = torch.tensor([[0] * 7 + [1] * 6 + [-1] * 3])
    positions = torch.tensor([[*range(7), *range(6), 0, 0, 0]])
    packed = logits(model, ids, positions, documents)
    for part in (slice(0, 7), slice(7, 13)):
        length = part.stop - part.start
        alone = logits(model, ids[:, part], torch.arange(length).unsqueeze(0), torch.zeros(1, length))
        torch.testing.assert_close(packed[:, part], alone, atol=1e-4, rtol=1e-4)


def test_only_the_first_layer_is_dense():
    names = released_tensors(model_with().state_dict())
    assert "language_model.model.layers.0.mlp.gate_proj.weight" in names
    for layer in range(1, 4):
        assert f"language_model.model.layers.{layer}.mlp.experts.7.down_proj.weight" in names


@torch.no_grad()
def test_prefill_and_decode_give_the_states_of_the_forward():
    decoder = model_with(YARN).double().language_model.model
    ids = torch.randint(0, 1024, (2, 9), generator=torch.Generator().manual_seed(2))
    x_BTD = decoder.embed_tokens(ids)
    expected = decoder(x_BTD, torch.arange(9).expand(2, -1), Documents(2, 9, ids.device))
    rows, lengths = torch.arange(2), torch.tensor([8, 5])
    latents, last = decoder.prefill(x_BTD[:, :8], lengths.tolist())
    torch.testing.assert_close(decoder.norm(last), expected[rows, lengths - 1], atol=1e-6, rtol=1e-6)
    cache = torch.randn(*latents.shape[:2], latents.shape[3], 12, dtype=torch.float64)
    for row, length in enumerate(lengths):
        cache[:, row, :, :length] = latents[:, row, :length].mT
    got = decoder.norm(decoder.decode(ids[rows, lengths], cache, lengths))
    torch.testing.assert_close(got, expected[rows, lengths], atol=1e-6, rtol=1e-6)
