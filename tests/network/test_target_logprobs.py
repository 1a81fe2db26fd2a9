from __future__ import annotations

import pytest
import torch
from torch import nn

from model.network import target_logprobs as module
from model.network.target_logprobs import target_logprobs


def drawn(rows: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, nn.Linear, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    head = nn.Linear(12, 50, bias=False, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(50, 12, generator=generator, dtype=dtype))
    hidden = torch.randn(rows, 12, generator=generator, dtype=dtype).mul_(3).requires_grad_()
    targets = torch.randint(0, 50, (rows,), generator=generator)
    return hidden, head, targets, torch.randn(rows, generator=generator, dtype=dtype)


@pytest.mark.parametrize("rows", [1, 10, 11, 37])
def test_values_and_gradients_are_those_of_a_log_softmax(
    rows: int, monkeypatch: pytest.MonkeyPatch, either_way: None
) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 10 * 50)  # ten rows at a time
    hidden, head, targets, cotangent = drawn(rows)
    expected = head(hidden).log_softmax(-1)[torch.arange(rows), targets]
    wanted = torch.autograd.grad(expected, [hidden, head.weight], cotangent)
    got = target_logprobs(hidden, head, targets)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(got, [hidden, head.weight], cotangent), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_large_logits_do_not_overflow(either_way: None) -> None:
    hidden, head, targets, _ = drawn(5, torch.float32)
    got = target_logprobs(hidden * 1e4, head, targets)
    assert got.isfinite().all() and torch.equal(got, target_logprobs(hidden * 1e4, head, targets))


def test_narrow_products_stay_near_and_keep_the_gradients_types(either_way: None) -> None:
    hidden, head, targets, cotangent = drawn(70, torch.float32)
    expected = torch.autograd.grad(target_logprobs(hidden, head, targets), [hidden, head.weight], cotangent)
    got = target_logprobs(hidden, head, targets, torch.bfloat16)
    gradients = torch.autograd.grad(got, [hidden, head.weight], cotangent)
    assert got.dtype == torch.float32 and all(gradient.dtype == torch.float32 for gradient in gradients)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize("target", [-1, 50])
def test_a_target_outside_the_vocabulary_is_refused(target: int) -> None:
    hidden, head, targets, _ = drawn(5)
    targets[3] = target
    with pytest.raises(IndexError, match="vocabulary of 50"):
        target_logprobs(hidden, head, targets)


def test_bfloat16_weights_on_a_cpu_are_torchs_business() -> None:
    hidden, head, targets, cotangent = drawn(70, torch.float32)
    expected = target_logprobs(hidden, head, targets)
    narrow = nn.Linear(12, 50, bias=False, dtype=torch.bfloat16)
    narrow.weight.data.copy_(head.weight)
    got = target_logprobs(hidden.bfloat16(), narrow, targets)
    torch.testing.assert_close(got.float(), expected, atol=0.05, rtol=0.05)
    wanted = torch.autograd.grad(expected, head.weight, cotangent)[0]
    gradient = torch.autograd.grad(got, narrow.weight, cotangent.bfloat16())[0].float()
    assert (gradient - wanted).norm() < 0.05 * wanted.norm()
