"""The circuit that the initial weights hold: previous-token heads, then heads that look for what followed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.boundary.errors import MoonflowError
from model.data.batches.packing import pack
from model.network import initial
from model.network.config import ModelConfig, preset
from model.network.expert_share import ExpertShare
from model.network.initial import initialise, new_model
from model.network.multimodal import KimiK25
from tests.configs import NARROW, changed
from tests.drawn import text_sample
from tests.equality import part_of, same_tensors

PERIOD = 24

# Seed -> elements 1000 to 1002 of three tensors. Other processors differ in the last bits.
RECORDED = [
    (0, [1.15033, 0.268997, 0.733223], [0.0913847, 0.0630183, -0.0467966], [0.0355001, -0.0458123, -0.00932379]),
    (1, [0.0554296, -0.80532, 0.295611], [0.306273, 0.207588, -0.0235037], [-0.130493, -0.0974059, 0.0934179]),
    (7, [0.103301, 0.250282, -0.840374], [0.115108, 0.115048, -0.344194], [-0.0333729, 0.0330737, -0.105864]),
]


def attention_weights(model: KimiK25, layer: int, ids_T: Tensor) -> Tensor:
    """[H, T, T] of one layer, by the formula, from the input that the layer gets."""
    decoder = model.language_model.model
    seen: dict[str, Tensor] = {}
    attention = decoder.layers[layer].self_attn
    hook = attention.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    model(pack([text_sample(ids_T)], 0))
    hook.remove()
    x_BTD = seen["x"].view(1, -1, seen["x"].shape[-1])[:, : len(ids_T)]
    cos, sin = decoder.rotary(torch.arange(len(ids_T)).unsqueeze(0))
    config = attention.config
    heads, nope = config.num_attention_heads, config.qk_nope_head_dim
    q_THK = attention.queries(x_BTD, cos, sin)[0]
    latent_BTC, rope_BTR = attention.latents(x_BTD, cos, sin)
    k_THI = attention.kv_b_proj(latent_BTC)[0].unflatten(-1, (heads, -1))[..., :nope]
    logits_HTT = torch.einsum("thn,shn->hts", q_THK[..., :nope], k_THI)
    logits_HTT = logits_HTT + torch.einsum("thr,sr->hts", q_THK[..., nope:], rope_BTR[0])
    future_TT = torch.ones(len(ids_T), len(ids_T), dtype=torch.bool).triu(1)
    return (logits_HTT * config.softmax_scale).masked_fill(future_TT, -torch.inf).softmax(-1)


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_the_weights_begin_with_an_induction_circuit(seed: int) -> None:
    model = new_model(preset("tiny"), seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    back, follows, same, uniform = [], [], [], []
    t = torch.arange(PERIOD, 2 * PERIOD)
    for _ in range(8):
        ids_T = torch.randint(0, 768, (PERIOD,), generator=generator).repeat(2)
        back.append(
            (attention_weights(model, 0, ids_T).argmax(-1)[:, 1:] == torch.arange(len(ids_T) - 1)).float().mean()
        )
        weights_HTT = attention_weights(model, 1, ids_T)
        follows.append(weights_HTT[:, t, t - PERIOD + 1].mean())
        same.append(weights_HTT[:, t, t - PERIOD].mean())
        uniform.append((1 / (t + 1)).mean())
    assert torch.stack(back).mean() > 0.5
    assert torch.stack(follows).mean() > 1.8 * torch.stack(uniform).mean()
    assert torch.stack(follows).mean() > torch.stack(same).mean()


@pytest.mark.parametrize("seed", [0, 3])
def test_the_weights_are_those_of_a_model_that_was_constructed_in_memory(seed: int) -> None:
    """torch's own first weights of norms and biases stay; all others are drawn in the same order."""
    before = torch.get_rng_state()
    model = new_model(preset("tiny"), seed)
    assert torch.equal(torch.get_rng_state(), before)
    whole = KimiK25(preset("tiny"))
    initialise(whole, seed)
    assert model.training and all(parameter.dtype == torch.float32 for parameter in model.parameters())
    expected = whole.state_dict()
    assert expected.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name
        if name.endswith("bias"):
            assert not value.any(), name
        elif "norm" in name:
            assert (value == 1).all(), name


@pytest.mark.parametrize(("seed", "embeddings", "keys", "experts"), RECORDED)
def test_a_seed_draws_the_weights_that_it_always_drew(
    seed: int, embeddings: list[float], keys: list[float], experts: list[float]
) -> None:
    weights = new_model(preset("tiny"), seed).state_dict()
    for name, drawn in (
        ("language_model.model.embed_tokens.weight", embeddings),
        ("language_model.model.layers.2.self_attn.kv_b_proj.weight", keys),
        ("language_model.model.layers.3.mlp.experts.gate_up_proj", experts),
    ):
        assert weights[name].flatten()[1000:1003].tolist() == pytest.approx(drawn, rel=1e-4), name


# An expert of ODD is not whole blocks of torch's draws: 2 * 5 * 3 numbers.
ODD = changed(NARROW, {"moe_intermediate_size": 5, "hidden_size": 3}, {"text_hidden_size": 3})


@pytest.mark.parametrize("config", [NARROW, ODD], ids=["experts one by one", "experts together"])
@pytest.mark.parametrize("parts", [1, 2, 8])
def test_a_share_of_the_experts_has_the_weights_of_the_whole_model(config: ModelConfig, parts: int) -> None:
    whole, seen = new_model(config, seed=3), []
    tables = dict(whole.named_buffers())
    for number in range(parts):
        share = ExpertShare(number, parts)
        part = new_model(config, 3, share)
        assert same_tensors(part.state_dict(), part_of(whole.state_dict(), config, share))
        assert same_tensors(dict(part.named_buffers()), tables)
        assert all(not tensor.is_meta for tensor in (*part.parameters(), *part.buffers()))
        seen += next(part.experts()).held
    assert seen == list(range(config.text_config.n_routed_experts))


def test_experts_that_are_drawn_one_by_one_are_those_of_one_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one = new_model(NARROW, seed=3).state_dict()
    monkeypatch.setattr(initial, "BLOCK", 2**60)
    assert same_tensors(new_model(NARROW, seed=3).state_dict(), one_by_one)


def test_experts_that_do_not_divide_are_refused() -> None:
    with pytest.raises(MoonflowError, match="8 routed experts do not divide among 3 ranks: choose an expert_parallel"):
        new_model(NARROW, 3, ExpertShare(0, 3))
