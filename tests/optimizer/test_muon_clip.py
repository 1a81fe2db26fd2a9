from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from model.network.attention import MultiheadLatentAttention, Rotary
from model.network.config import preset
from model.network.documents import Documents
from model.network.initial import new_model
from model.optimizer.muon_clip import MuonClip, build_optimizer, is_muon, qk_clip
from tests.drawn import draw, randomise
from tests.equality import distance

TINY = preset("tiny").text_config


def newton_schulz(matrix: torch.Tensor) -> torch.Tensor:
    """The iteration as Muon's authors state it, in float64, for one matrix."""
    x = matrix.double()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.square().sum().sqrt() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x.T if tall else x


class Net(nn.Module):
    """Names and shapes of every kind that the rules tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Parameter(draw(12, 20, seed=1))
        self.o_proj = nn.Parameter(draw(20, 12, seed=2))
        self.twin = nn.Parameter(draw(12, 20, seed=3))
        self.experts = nn.Parameter(draw(3, 8, 12, seed=4))
        self.embed_tokens = nn.Parameter(draw(9, 12, seed=5))
        self.norm = nn.Parameter(draw(12, seed=6))
        self.patch_embed = nn.Parameter(draw(4, 3, 2, 2, seed=7))


MUON = {"q_proj", "o_proj", "twin", "experts"}


def give_gradients(net: Net, step: int) -> None:
    for number, parameter in enumerate(net.parameters()):
        parameter.grad = draw(*parameter.shape, seed=100 * step + number)


def test_muon_equals_the_reference_in_float64():
    net, rate, decay = Net(), 0.02, 0.1
    optimizer = MuonClip(net.named_parameters(), rate, weight_decay=decay)
    expected = {name: value.detach().double().clone() for name, value in net.named_parameters() if name in MUON}
    momentum = {name: torch.zeros_like(value) for name, value in expected.items()}
    for step in range(4):
        give_gradients(net, step)
        before = {name: value.clone() for name, value in expected.items()}
        for name, weight in expected.items():
            gradient = dict(net.named_parameters())[name].grad.double()
            momentum[name] = 0.95 * momentum[name] + gradient
            update = gradient + 0.95 * momentum[name]
            matrices = update if update.ndim == 3 else update.unsqueeze(0)
            n, m = matrices.shape[-2:]
            orthogonal = torch.stack([newton_schulz(matrix) for matrix in matrices]).view_as(weight)
            expected[name] = weight - rate * (0.2 * math.sqrt(max(n, m)) * orthogonal + decay * weight)
        optimizer.step()
        for name, parameter in net.named_parameters():
            if name in MUON:
                moved = parameter.detach().double() - before[name]
                assert distance(moved, expected[name] - before[name]) < 0.05 * (step + 1), name


def test_an_update_of_muon_has_the_size_of_adamw():
    parameter = nn.Parameter(torch.zeros(64, 160))
    parameter.grad = draw(64, 160)
    MuonClip([("q_proj", parameter)], 1.0, weight_decay=0.0).step()
    assert float(parameter.detach().square().mean().sqrt()) == pytest.approx(0.2, rel=0.2)


def test_the_rest_equals_adamw():
    net, twin = Net(), Net()
    others = [name for name, _ in net.named_parameters() if name not in MUON]
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8}
    parts = dict(twin.named_parameters())
    groups = [
        {"params": [parts[name] for name in others if parts[name].ndim > 1], "weight_decay": 0.1},
        {"params": [parts[name] for name in others if parts[name].ndim == 1], "weight_decay": 0.0},
    ]
    optimizer, adamw = MuonClip(net.named_parameters(), 0.01), torch.optim.AdamW(groups, **settings)
    for step in range(5):
        for one in (net, twin):
            give_gradients(one, step)
        optimizer.set_learning_rate(0.01 / (step + 1))
        for group in adamw.param_groups:
            group["lr"] = 0.01 / (step + 1)
        optimizer.step()
        adamw.step()
        for name in others:
            torch.testing.assert_close(net.get_parameter(name), twin.get_parameter(name), atol=1e-6, rtol=1e-5)


def test_parameters_without_gradient_are_left_alone():
    net = Net()
    optimizer = MuonClip(net.named_parameters(), 0.1)
    give_gradients(net, 0)
    net.q_proj.grad = net.norm.grad = None
    optimizer.step()
    assert torch.equal(net.q_proj, draw(12, 20, seed=1)) and torch.equal(net.norm, draw(12, seed=6))
    assert not torch.equal(net.twin, draw(12, 20, seed=3))
    assert not any(key.startswith(("q_proj", "norm")) for key in optimizer.named_state())


def test_which_parameters_are_muons():
    model = new_model(preset("tiny"))
    adamw = {name for name, parameter in model.named_parameters() if not is_muon(name, parameter)}
    matrices = {name for name in adamw if model.get_parameter(name).ndim > 1}
    assert matrices == {
        "language_model.model.embed_tokens.weight",
        "language_model.lm_head.weight",
        "vision_tower.patch_embed.proj.weight",
        "vision_tower.patch_embed.pos_emb.weight",
    }
    assert all("norm" in name or name.endswith("bias") for name in adamw - matrices)


def test_only_what_learns_is_in_the_optimizer():
    model = new_model(preset("tiny"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mm_projector" in name)
    held = build_optimizer(model, 0.1).names.values()
    assert len(held) == 6 and all("mm_projector" in name for name in held)


def test_a_restored_state_goes_on_to_the_bit():
    net, twin = Net(), Net()
    optimizer = MuonClip(net.named_parameters(), 0.02)
    for step in range(3):
        give_gradients(net, step)
        optimizer.step()
    twin.load_state_dict(net.state_dict())
    restored = MuonClip(twin.named_parameters(), 0.02)
    restored.load_named_state({key: value.clone() for key, value in optimizer.named_state().items()})
    assert set(optimizer.named_state()) == {f"{name}/momentum" for name in MUON} | {
        f"{name}/{slot}"
        for name in ("embed_tokens", "norm", "patch_embed")
        for slot in ("exp_avg", "exp_avg_sq", "step")
    }
    for step in range(3, 6):
        for one, its in ((net, optimizer), (twin, restored)):
            give_gradients(one, step)
            its.step()
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, twin.get_parameter(name)), name
    for key, value in optimizer.named_state().items():
        assert torch.equal(value, restored.named_state()[key]), key


# QK-clip


class Forward:
    """An attention in training, and its logits by part: through the nope dims, and through the rope dims."""

    def __init__(self) -> None:
        self.attention = MultiheadLatentAttention(TINY).train()
        randomise(self.attention, seed=1)
        self.x = draw(2, 8, TINY.hidden_size)
        self.rotation = Rotary(TINY)(torch.arange(8).repeat(2, 1))
        self.mask = Documents.of(torch.zeros(2, 8, dtype=torch.long))

    @torch.no_grad()
    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        attention = self.attention
        attention(self.x, *self.rotation, self.mask)
        q = attention.queries(self.x, *self.rotation)
        c, k_rope = attention.latents(self.x, *self.rotation)
        k_nope = attention.kv_b_proj(c).unflatten(-1, (TINY.num_attention_heads, -1))[..., : TINY.qk_nope_head_dim]
        nope, rope = q.split((TINY.qk_nope_head_dim, TINY.qk_rope_head_dim), dim=-1)
        scale = TINY.qk_head_dim**-0.5
        return torch.einsum("bihn,bjhn->bhij", nope, k_nope) * scale, torch.einsum(
            "bihr,bjr->bhij", rope, k_rope
        ) * scale

    def largest(self) -> list[float]:
        nope, rope = self.run()
        return (nope + rope).masked_fill(~self.mask.mask_B1TT, -torch.inf).amax((0, 2, 3)).tolist()


def test_clip_brings_both_parts_of_the_logits_down_and_leaves_other_heads_alone():
    forward = Forward()
    weights = [forward.attention.q_b_proj.weight, forward.attention.kv_b_proj.weight]
    with torch.no_grad():
        q = weights[0].view(TINY.num_attention_heads, TINY.qk_head_dim, -1)
        q[:] *= 20 / max(forward.largest())
        q[1] *= 20
        q[3] *= 40
    before, (nope, rope) = forward.largest(), forward.run()
    assert before[0] < 100 < before[1] < before[3] and before[2] < 100
    old = [weight.detach().clone() for weight in weights]
    rest = {name: value.clone() for name, value in forward.attention.state_dict().items() if "_b_proj" not in name}

    assert qk_clip([forward.attention]) == 2

    after, (nope_after, rope_after) = forward.largest(), forward.run()
    for head in (1, 3):
        assert after[head] == pytest.approx(100.0, rel=1e-4)
        gamma = 100 / before[head]
        torch.testing.assert_close(nope_after[:, head], nope[:, head] * gamma, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(rope_after[:, head], rope[:, head] * gamma, rtol=1e-3, atol=1e-3)
    for head in (0, 2):
        assert after[head] == before[head]
        for weight, was in zip(weights, old, strict=True):
            assert torch.equal(weight.view(4, -1)[head], was.view(4, -1)[head])
    values = slice(TINY.qk_nope_head_dim, None)
    assert torch.equal(
        weights[1].view(4, -1, TINY.kv_lora_rank)[:, values], old[1].view(4, -1, TINY.kv_lora_rank)[:, values]
    )
    for name, value in rest.items():
        assert torch.equal(forward.attention.state_dict()[name], value), name


def test_clip_equals_the_formula_in_float64():
    attention = MultiheadLatentAttention(TINY)
    randomise(attention, seed=2)
    attention.max_logit_H = torch.tensor([250.0, 99.9, 100.1, 4000.0])
    nope, heads = TINY.qk_nope_head_dim, TINY.num_attention_heads
    q = attention.q_b_proj.weight.detach().double().view(heads, TINY.qk_head_dim, -1).clone()
    kv = attention.kv_b_proj.weight.detach().double().view(heads, nope + TINY.v_head_dim, -1).clone()
    for head, largest in ((0, 250.0), (2, float(torch.tensor(100.1))), (3, 4000.0)):
        gamma = 100.0 / largest
        q[head, :nope] *= math.sqrt(gamma)
        q[head, nope:] *= gamma
        kv[head, :nope] *= math.sqrt(gamma)
    assert qk_clip([attention]) == 3
    for weight, expected in ((attention.q_b_proj.weight, q), (attention.kv_b_proj.weight, kv)):
        torch.testing.assert_close(weight.detach().double(), expected.view_as(weight), rtol=3e-7, atol=0)


def test_clip_does_nothing_below_the_threshold_or_before_a_forward():
    forward = Forward()
    before = {name: value.clone() for name, value in forward.attention.state_dict().items()}
    assert qk_clip([forward.attention]) == 0
    forward.attention.q_b_proj.weight.data *= 0.01
    before["q_b_proj.weight"] *= 0.01
    forward.run()
    assert qk_clip([forward.attention]) == 0
    for name, value in before.items():
        assert torch.equal(forward.attention.state_dict()[name], value), name
