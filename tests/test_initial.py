"""The circuit that the initial weights hold: previous-token heads, then heads that look for what followed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.config import preset
from model.data.packing import pack
from model.data.tokenize import TokenizedSample
from model.multimodal import KimiK25

PERIOD = 24


def attention_weights(model: KimiK25, layer: int, ids_T: Tensor) -> Tensor:
    """[H, T, T] of one layer, by the formula, from the input that the layer gets."""
    decoder = model.language_model.model
    seen: dict[str, Tensor] = {}
    attention = decoder.layers[layer].self_attn
    hook = attention.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    model(pack([TokenizedSample(ids_T, torch.ones(len(ids_T), dtype=torch.bool), None, [])], 0))
    hook.remove()
    x_BTD = seen["x"].view(1, -1, seen["x"].shape[-1])[:, : len(ids_T)]
    cos, sin = decoder.rotary(torch.arange(len(ids_T)).unsqueeze(0))
    config = attention.config
    heads, nope = config.num_attention_heads, config.qk_nope_head_dim
    q_THK = attention.queries(x_BTD, cos, sin)[0]
    latent_BTC, rope_BTR = attention.latents(x_BTD, cos, sin)
    k_THN = attention.kv_b_proj(latent_BTC)[0].unflatten(-1, (heads, -1))[..., :nope]
    logits_HTT = torch.einsum("thn,shn->hts", q_THK[..., :nope], k_THN)
    logits_HTT = logits_HTT + torch.einsum("thr,sr->hts", q_THK[..., nope:], rope_BTR[0])
    future_TT = torch.ones(len(ids_T), len(ids_T), dtype=torch.bool).triu(1)
    return (logits_HTT * config.softmax_scale).masked_fill(future_TT, -torch.inf).softmax(-1)


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_the_weights_begin_with_an_induction_circuit(seed: int) -> None:
    model = KimiK25(preset("tiny"), seed=seed).eval()
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


def test_a_model_on_the_meta_device_has_shapes_only() -> None:
    with torch.device("meta"):
        model = KimiK25(preset("small"))
    assert all(parameter.is_meta for parameter in model.parameters())
