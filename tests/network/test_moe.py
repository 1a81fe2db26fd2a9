from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

from model.network.config import preset
from model.network.moe import GroupedExperts, MixtureOfExperts, Router
from tests.drawn import draw, randomise
from tests.peers import peer_config

TINY = preset("tiny").text_config
SMALL = TINY.model_copy(update={"hidden_size": 6, "n_routed_experts": 4, "num_experts_per_tok": 2})


def make_router(seed: int = 0) -> Router:
    router = Router(SMALL)
    randomise(router, seed, std=1.0)
    return router


def test_equals_the_mixture_of_experts_of_transformers():
    ours = MixtureOfExperts(TINY)
    randomise(ours, seed=3)
    ours.gate.e_score_correction_bias.data *= 3  # the bias must change choices and must not change weights
    theirs = DeepseekV3MoE(peer_config(TINY)).eval()
    theirs.load_state_dict(ours.state_dict())
    x = draw(3, 7, TINY.hidden_size)
    expected = theirs(x)
    torch.testing.assert_close(ours.eval()(x), expected, atol=1e-5 * float(expected.detach().abs().max()), rtol=1e-5)
    with_bias, _ = ours.gate(x)
    ours.gate.e_score_correction_bias.data.zero_()
    assert not torch.equal(with_bias.sort().values, ours.gate(x)[0].sort().values)


@pytest.mark.parametrize("learns", [True, False])
def test_routing_by_hand(learns, either_way):
    router, x = make_router(), draw(1, 5, SMALL.hidden_size)
    with torch.set_grad_enabled(learns):
        chosen, weights = router.eval()(x)
    assert weights.requires_grad == learns
    for token in range(5):
        scores = [1 / (1 + float(torch.exp(-(row @ x[0, token])))) for row in router.weight.detach()]
        biased = [score + float(bias) for score, bias in zip(scores, router.e_score_correction_bias, strict=True)]
        best = sorted(range(4), key=lambda expert: -biased[expert])[:2]
        assert set(chosen[token].tolist()) == set(best)
        for expert, weight in zip(chosen[token].tolist(), weights[token].tolist(), strict=True):
            expected = 2.827 * scores[expert] / sum(scores[chosen_expert] for chosen_expert in best)
            assert abs(weight - expected) < 1e-5


def plain_experts(x, weights, chosen, gate_up, down):
    rows = []
    for token in range(len(x)):
        row = torch.zeros_like(x[token])
        for place, expert in enumerate(chosen[token].tolist()):
            gate, up = (gate_up[expert] @ x[token]).chunk(2)
            row = row + weights[token, place] * (down[expert] @ (F.silu(gate) * up))
        rows.append(row)
    return torch.stack(rows)


def expert_inputs():
    """Expert 3 of 5 gets no token, expert 0 gets one."""
    chosen = torch.tensor([[1, 2], [4, 1], [2, 4], [0, 2], [2, 1], [1, 4]])
    shapes = [(6, 3), (6, 2), (5, 8, 3), (5, 3, 4)]
    x, weights, gate_up, down = (
        draw(*shape, seed=n, dtype=torch.float64).requires_grad_() for n, shape in enumerate(shapes)
    )
    return x, weights, chosen, gate_up, down


def test_grouped_experts_and_their_gradients_equal_a_loop_over_tokens(either_way):
    x, weights, chosen, gate_up, down = expert_inputs()
    learned, cotangent = (x, weights, gate_up, down), draw(6, 3, seed=9, dtype=torch.float64)
    expected = plain_experts(x, weights, chosen, gate_up, down)
    got = GroupedExperts.apply(x, weights, chosen, gate_up, down)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)
    wanted = torch.autograd.grad(expected, learned, cotangent)
    for ours, theirs in zip(torch.autograd.grad(got, learned, cotangent), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    assert not wanted[2][3].any() and wanted[2][0].any()


def test_grouped_experts_pass_gradcheck(either_way):
    x, weights, chosen, gate_up, down = expert_inputs()
    run = GroupedExperts.apply
    assert torch.autograd.gradcheck(
        lambda *learned: run(*learned[:2], chosen, *learned[2:]), (x, weights, gate_up, down)
    )


def test_all_tokens_to_one_expert(either_way):
    x, weights, _, gate_up, down = expert_inputs()
    chosen = torch.full((6, 1), 4)
    got = GroupedExperts.apply(x, weights[:, :1], chosen, gate_up, down)
    torch.testing.assert_close(got, plain_experts(x, weights[:, :1], chosen, gate_up, down), atol=1e-12, rtol=1e-12)


def test_the_bias_of_crowded_experts_falls_and_of_idle_ones_rises():
    router = make_router()
    before = router.e_score_correction_bias.clone()
    router.load_E += torch.tensor([10.0, 0.0, 2.0, 4.0])  # mean 4
    router.update_bias(0.01)
    moved = router.e_score_correction_bias - before
    torch.testing.assert_close(moved, torch.tensor([-0.01, 0.01, 0.01, 0.0]), atol=1e-7, rtol=0)
    assert not router.load_E.any()


def test_load_is_counted_in_training_only_and_over_several_forwards():
    router, x = make_router(), draw(2, 5, SMALL.hidden_size)
    router.eval()(x)
    assert not router.load_E.any() and router.aux_loss is None
    router.train()
    chosen, _ = router(x)
    assert torch.equal(router.load_E, chosen.flatten().bincount(minlength=4).float())
    router(x)
    assert router.load_E.sum() == 2 * 2 * 5 * 2


def test_updates_of_the_bias_even_the_load_out():
    router, x = make_router(seed=5).train(), draw(4, 64, SMALL.hidden_size)

    def spread() -> float:
        router.load_E.zero_()
        router(x)
        return float(router.load_E.max() - router.load_E.min())

    before = spread()
    for _ in range(200):
        router.update_bias(0.01)
        router(x)
    assert spread() < 0.2 * before


def test_balance_loss_by_hand():
    router, x = make_router().train(), draw(2, 5, SMALL.hidden_size)
    chosen, _ = router(x)
    expected = 0.0
    for row in range(2):
        scores = (x[row].double() @ router.weight.detach().double().T).sigmoid()
        for expert in range(4):
            share = float((chosen.view(2, 5, 2)[row] == expert).sum()) * 4 / (2 * 5)
            mean = sum(float(scores[t, expert] / scores[t].sum()) for t in range(5)) / 5
            expected += SMALL.aux_loss_alpha * share * mean / 2
    assert abs(float(router.aux_loss.detach()) - expected) < 1e-8
    (gradient,) = torch.autograd.grad(router.aux_loss, router.weight)
    assert gradient.abs().max() > 0
