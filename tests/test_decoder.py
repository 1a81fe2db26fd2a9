from __future__ import annotations

import pytest
import torch

from model.config import RopeScaling, preset
from model.documents import Documents
from model.hf import released_tensors
from model.multimodal import KimiK25
from tests.peers import peer_language_model, randomise

YARN = RopeScaling(factor=4.0, original_max_position_embeddings=256)


def random_model(scaling: RopeScaling | None = None) -> KimiK25:
    config = preset("tiny")
    text = config.text_config.model_copy(update={"rope_scaling": scaling})
    model = KimiK25(config.model_copy(update={"text_config": text}))
    randomise(model, seed=4, std=0.1)
    return model.eval()


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
    model = random_model(scaling)
    peer = peer_language_model(model.config.text_config, released_tensors(model), attention)
    ids = torch.randint(0, 1024, (2, 23), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = peer(ids).logits
    got = logits(model, ids, torch.arange(23).expand(2, -1), torch.zeros_like(ids))
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=1e-4)


def test_packed_documents_have_the_logits_they_have_alone():
    model = random_model()
    ids = torch.randint(0, 1024, (1, 16), generator=torch.Generator().manual_seed(1))
    documents = torch.tensor([[0] * 7 + [1] * 6 + [-1] * 3])
    positions = torch.tensor([[*range(7), *range(6), 0, 0, 0]])
    packed = logits(model, ids, positions, documents)
    for part in (slice(0, 7), slice(7, 13)):
        length = part.stop - part.start
        alone = logits(model, ids[:, part], torch.arange(length).unsqueeze(0), torch.zeros(1, length))
        torch.testing.assert_close(packed[:, part], alone, atol=1e-4, rtol=1e-4)


def test_only_the_first_layer_is_dense():
    names = released_tensors(random_model())
    assert "language_model.model.layers.0.mlp.gate_proj.weight" in names
    for layer in range(1, 4):
        assert f"language_model.model.layers.{layer}.mlp.experts.7.down_proj.weight" in names
