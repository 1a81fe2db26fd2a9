from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model.network import precision
from model.network.attention import MultiheadLatentAttention, Rotary
from model.network.batch import Batch
from model.network.config import preset
from model.network.documents import Documents
from model.network.forward_context import ForwardContext
from model.network.initial import new_model
from model.network.moe import GroupedExperts
from model.network.packed_attention import PackedAttention
from model.network.precision import RMSNorm, add_norm, gated_ffn, linear, multiplies_bfloat16, narrow_products
from tests import drawn
from tests.configs import YARN
from tests.drawn import packed_documents, pixels, randomise

TINY = preset("tiny").text_config
draw = partial(drawn.draw, dtype=torch.float64)


def same_gradients(got: torch.Tensor, expected: torch.Tensor, learned: list[torch.Tensor]) -> None:
    cotangent = draw(*expected.shape, seed=99, dtype=expected.dtype)
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)
    wanted = torch.autograd.grad(expected, learned, cotangent)
    for ours, theirs in zip(torch.autograd.grad(got, learned, cotangent), wanted, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("told", "dtype"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_narrow_products_are_what_the_processor_multiplies_fast(monkeypatch, told: dict, dtype: torch.dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", **told})
    monkeypatch.setattr(precision, "multiplies_bfloat16", multiplies_bfloat16.__wrapped__)  # not what it remembers
    assert narrow_products(torch.device("cpu")) == dtype
    assert narrow_products(torch.device("meta")) == torch.bfloat16


@pytest.mark.parametrize("rows", [5, 64, 70])
@pytest.mark.parametrize("bias", [False, True])
def test_products_in_the_dtype_of_the_weights_are_torchs(rows, bias):
    layer, x = nn.Linear(12, 7, bias=bias, dtype=torch.float64), draw(2, rows, 12).requires_grad_()
    got = linear(x, layer, torch.float64)
    same_gradients(got, layer(x), [x, *layer.parameters()])


def test_a_norm_is_torchs(either_way):
    norm, x = RMSNorm(12, eps=1e-3, dtype=torch.float64), draw(2, 5, 12).requires_grad_()
    randomise(norm, seed=1)
    got = norm(x, torch.float64)
    same_gradients(got, F.rms_norm(x, (12,), norm.weight, 1e-3), [x, norm.weight])


def test_a_stream_takes_up_a_result_and_is_normed(either_way):
    norm = RMSNorm(12, eps=1e-3, dtype=torch.float64)
    randomise(norm, seed=1)
    x, result = (draw(2, 5, 12, seed=n).requires_grad_() for n in range(2))
    got = torch.stack(add_norm(x, result, norm, torch.float64))
    expected = torch.stack((x + result, F.rms_norm(x + result, (12,), norm.weight, 1e-3)))
    same_gradients(got, expected, [x, result, norm.weight])


def test_a_gated_ffn_is_three_products(either_way):
    gate, up, down = (nn.Linear(a, b, bias=False, dtype=torch.float64) for a, b in ((6, 10), (6, 10), (10, 6)))
    x = draw(3, 4, 6).requires_grad_()
    got = gated_ffn(x, gate, up, down, torch.float64)
    same_gradients(got, down(F.silu(gate(x)) * up(x)), [x, gate.weight, up.weight, down.weight])


def packed_rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Two chunks of queries, and documents across their border."""
    return packed_documents((70, 80, 10), (3, 150, 7))


def plain_attention(q_BTx, kv_BTx, rope_BTR, turn_BTr, mask_B1TT, sizes, scale):
    """Scores and all, in one piece, from the definition."""
    heads, nope, _ = sizes

    def rotated(x, turn):
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)

    q, kv = q_BTx.unflatten(-1, (heads, -1)), kv_BTx.unflatten(-1, (heads, -1))
    q_rope = rotated(q[..., nope:], turn_BTr.unsqueeze(2))
    scores = torch.einsum("bihn,bjhn->bhij", q[..., :nope], kv[..., :nope])
    scores = scores + torch.einsum("bihr,bjr->bhij", q_rope, rotated(rope_BTR, turn_BTr))
    scores = (scores * scale).masked_fill(~mask_B1TT, -torch.inf)
    return torch.einsum("bhij,bjhv->bihv", scores.softmax(-1), kv[..., nope:]).flatten(2), scores.amax((0, 2, 3))


def test_packed_attention_and_its_gradients_equal_the_definition():
    documents, positions = packed_rows()
    sizes, mask = (3, 4, 6), Documents.of(documents)
    q, kv, rope = (draw(2, 160, n, seed=n).requires_grad_() for n in (3 * 8, 3 * 10, 4))
    angles = positions.unsqueeze(-1) * torch.tensor([1.0, 0.1], dtype=torch.float64)
    turned = (angles.cos(), angles.sin())
    got, largest = PackedAttention.apply(q, kv, rope, *turned, mask.first_BT, sizes, 0.5)
    expected, wanted = plain_attention(q, kv, rope, torch.complex(*turned), mask.mask_B1TT, sizes, 0.5)
    torch.testing.assert_close(largest, wanted.detach())
    same_gradients(got, expected, [q, kv, rope])


@pytest.mark.parametrize("scaling", [None, YARN], ids=["plain", "yarn"])
def test_attention_by_products_is_the_attention_by_the_fused_kernel(scaling):
    config = TINY.model_copy(update={"rope_scaling": scaling})
    attention = MultiheadLatentAttention(config).train()
    randomise(attention, seed=1, std=0.1)
    documents, positions = packed_rows()
    x, mask = draw(2, 160, config.hidden_size, dtype=torch.float32), Documents.of(documents)
    with torch.no_grad():
        expected = attention(x, *Rotary(config)(positions), mask)
        bound_h = attention.max_logit_H
        attention.clip_threshold = 0.0
        attention(x, *Rotary(config)(positions), mask)
        exact_h = attention.max_logit_H
        got = attention(x, *Rotary(config)(positions), mask, ForwardContext(torch.float32))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(attention.max_logit_H, exact_h)
    assert (exact_h < bound_h).all()


def test_experts_in_bfloat16_have_nearly_the_gradients_of_float32(either_way):
    """Uneven loads, an expert without tokens, and loads of a whole granule."""
    chosen = torch.cat([torch.tensor([[1, 2]] * 64), torch.tensor([[4, 2]] * 7), torch.tensor([[0, 4]])])
    shapes = [(72, 32), (72, 2), (5, 48, 32), (5, 32, 24)]
    learned = [draw(*shape, seed=n, dtype=torch.float32).requires_grad_() for n, shape in enumerate(shapes)]
    cotangent = draw(72, 32, seed=9, dtype=torch.float32)
    grads = {}
    for dtype in (torch.float32, torch.bfloat16):
        out = GroupedExperts.apply(*learned[:2], chosen, *learned[2:], dtype)
        grads[dtype] = [out.float(), *torch.autograd.grad(out, learned, cotangent.to(out.dtype))]
    for exact, rounded in zip(grads[torch.float32], grads[torch.bfloat16], strict=True):
        assert rounded.dtype == torch.float32
        assert 0 < float((rounded - exact).detach().norm() / exact.detach().norm()) < 0.02


def batch() -> Batch:
    documents, positions = packed_rows()
    ids = torch.randint(0, 768, documents.shape, generator=torch.Generator().manual_seed(0))
    ids[0, 10:16] = 789
    where, grids = torch.arange(20, 60), [(1, 4, 6)]
    return Batch(ids, positions, documents, where, ids.flatten()[where + 1], where > 0, where * 0, pixels(grids), grids)


def test_a_whole_step_in_bfloat16_has_nearly_the_gradients_of_float32(either_way):
    model = new_model(preset("tiny")).train()
    randomise(model, seed=4, std=0.08)
    twin, one = copy.deepcopy(model), batch()
    losses = []
    for each, dtype in ((model, None), (twin, torch.bfloat16)):
        losses.append(F.cross_entropy(each(one, ForwardContext(dtype)).float(), one.targets_N))
        losses[-1].backward()
    assert losses[1].detach() == pytest.approx(float(losses[0].detach()), rel=5e-3) and losses[0] != losses[1]
    for (name, exact), rounded in zip(model.named_parameters(), twin.parameters(), strict=True):
        if exact.grad is None or name.endswith("gate.weight"):
            continue
        assert rounded.dtype == rounded.grad.dtype == torch.float32
        # A token near a tie goes to another expert: gradients differ more than by rounding.
        assert F.cosine_similarity(exact.grad.flatten(), rounded.grad.flatten(), dim=0) > 0.9, name


def test_products_are_in_the_dtype_of_the_weights_where_none_is_asked_for():
    layer, x = nn.Linear(8, 8), draw(64, 8, dtype=torch.float32)
    assert linear(x, layer, torch.bfloat16).dtype == torch.bfloat16
    assert torch.equal(linear(x, layer, None), layer(x))
