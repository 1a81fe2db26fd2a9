from __future__ import annotations

import math

import pytest
import torch
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

from model.network.attention import MultiheadLatentAttention, Rotary, rope_frequencies_r, rotate
from model.network.config import RopeScaling, TextConfig, preset
from model.network.documents import Documents
from tests.configs import YARN
from tests.drawn import draw, packed_documents, randomise
from tests.peers import peer_config, same_latent_eps

TINY = preset("tiny").text_config


def make(config: TextConfig, std: float = 0.2) -> MultiheadLatentAttention:
    attention = MultiheadLatentAttention(config)
    randomise(attention, seed=1, std=std)
    return attention.eval()


def hidden(rows: int, tokens: int) -> torch.Tensor:
    return draw(rows, tokens, TINY.hidden_size, seed=2)


@pytest.mark.parametrize("scaling", [None, YARN], ids=["plain", "yarn"])
def test_equals_the_attention_of_transformers(scaling):
    config = TINY.model_copy(update={"rope_scaling": scaling})
    ours = make(config)
    theirs = DeepseekV3Attention(peer_config(config), layer_idx=0).eval()
    theirs.load_state_dict(ours.state_dict())
    same_latent_eps(theirs, config)
    x, positions = hidden(2, 9), torch.arange(9).repeat(2, 1) + torch.tensor([[0], [300]])
    causal = torch.full((9, 9), -torch.inf).triu(1).expand(2, 1, 9, 9)
    with torch.no_grad():
        expected, _ = theirs(x, DeepseekV3RotaryEmbedding(peer_config(config))(x, positions), causal)
        got = ours(x, *Rotary(config)(positions), Documents.of(torch.zeros(2, 9, dtype=torch.long)))
    assert got.std() > 0.01
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_yarn_changes_both_the_angles_and_the_softmax_scale():
    x, positions = hidden(1, 6), torch.arange(6).unsqueeze(0)
    mask = Documents.of(torch.zeros(1, 6, dtype=torch.long))
    with_yarn = TINY.model_copy(update={"rope_scaling": YARN})
    plain, extended = make(TINY), make(with_yarn)
    cos, sin = Rotary(TINY)(positions)
    assert extended.config.softmax_scale == pytest.approx(TINY.softmax_scale * (0.1 * math.log(4) + 1) ** 2)
    assert (plain(x, cos, sin, mask) - extended(x, cos, sin, mask)).abs().max() > 1e-3
    assert not torch.equal(rope_frequencies_r(TINY), rope_frequencies_r(with_yarn))


@pytest.mark.parametrize(
    ("rope_dims", "scaling"),
    [
        (16, None),
        (16, YARN),
        (64, RopeScaling(factor=64.0, original_max_position_embeddings=4096)),
        (64, RopeScaling(factor=32.0, original_max_position_embeddings=4096, beta_fast=1.0)),
    ],
    ids=["plain", "tiny", "k2.5", "k2"],
)
def test_frequencies_equal_those_of_transformers(rope_dims, scaling):
    config = TINY.model_copy(update={"rope_scaling": scaling, "qk_rope_head_dim": rope_dims})
    rotary = DeepseekV3RotaryEmbedding(peer_config(config))
    torch.testing.assert_close(rope_frequencies_r(config), rotary.inv_freq, atol=0, rtol=1e-5)
    assert rotary.attention_scaling == 1.0


def test_rotation_is_complex_multiplication_of_neighbouring_pairs():
    x = torch.randn(1, 3, 2, 8, dtype=torch.float64)
    angles = torch.rand(1, 3, 4, dtype=torch.float64) * 6
    expected = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.exp(1j * angles).unsqueeze(2))
    torch.testing.assert_close(rotate(x, angles.cos(), angles.sin()), expected.flatten(-2))


def test_packed_documents_do_not_see_each_other():
    attention, x = make(TINY), hidden(1, 12)
    ids, positions = packed_documents((5, 4, 3))
    with torch.no_grad():
        packed = attention(x, *Rotary(TINY)(positions), Documents.of(ids))
        for part in (slice(0, 5), slice(5, 9), slice(9, 12)):
            alone = torch.zeros(1, part.stop - part.start, dtype=torch.long)
            rotation = Rotary(TINY)(torch.arange(alone.shape[1]).unsqueeze(0))
            expected = attention(x[:, part], *rotation, Documents.of(alone))
            torch.testing.assert_close(packed[:, part], expected, atol=1e-5, rtol=1e-5)


def test_packed_mask_by_hand():
    mask = Documents.of(torch.tensor([[0, 0, 1, -1, -1]])).mask_B1TT[0, 0].int().tolist()
    assert mask == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]


def largest_logits(attention: MultiheadLatentAttention, x: torch.Tensor, rotation, documents: Documents) -> list[float]:
    """By one dot product for each head and each pair that the mask allows."""
    config = attention.config
    q = attention.queries(x, *rotation)
    c, k_rope = attention.latents(x, *rotation)
    k_nope = attention.kv_b_proj(c).unflatten(-1, (config.num_attention_heads, -1))[..., : config.qk_nope_head_dim]
    largest = []
    for head in range(config.num_attention_heads):
        logits = [
            float(q[b, i, head] @ torch.cat((k_nope[b, j, head], k_rope[b, j]))) * config.qk_head_dim**-0.5
            for b in range(len(x))
            for i in range(x.shape[1])
            for j in range(x.shape[1])
            if documents.mask_B1TT[b, 0, i, j]
        ]
        largest.append(max(logits))
    return largest


@torch.no_grad()
def test_max_logits_are_an_upper_bound_while_small_and_exact_where_it_passes_the_threshold():
    ids, positions = packed_documents((4, 3))
    rotation, mask, x = Rotary(TINY)(positions), Documents.of(ids), hidden(1, 7)
    attention = make(TINY, std=0.08).train()
    attention(x, *rotation, mask)
    exact = largest_logits(attention, x, rotation, mask)
    bound = attention.max_logit_H.clone()
    assert bound.max() < attention.clip_threshold
    assert all(0 < low < high < 100 * low for low, high in zip(exact, bound.tolist(), strict=True))

    scale = 3 * attention.clip_threshold / float(bound[1])
    attention.q_b_proj.weight.view(TINY.num_attention_heads, TINY.qk_head_dim, -1)[1] *= scale
    attention(x, *rotation, mask)
    assert attention.max_logit_H[1] == pytest.approx(largest_logits(attention, x, rotation, mask)[1], rel=1e-4)
    assert attention.max_logit_H[[0, 2, 3]].tolist() == pytest.approx(bound[[0, 2, 3]].tolist())


def test_max_logits_are_not_kept_in_evaluation():
    attention = make(TINY)
    attention(hidden(1, 3), *Rotary(TINY)(torch.arange(3).unsqueeze(0)), Documents.of(torch.zeros(1, 3)))
    assert attention.max_logit_H is None
