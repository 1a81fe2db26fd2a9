"""Experts in a batch-invariant forward: the same numbers, and a row's bits depend on nothing but the row."""

from __future__ import annotations

import pytest
import torch

from model.network.config import preset
from model.network.moe import Experts
from model.rollout.decoding import BATCH_INVARIANT
from tests.torch_threads import torch_threads

TEXT = preset("tiny").text_config


def case(rows: int, skewed: bool) -> tuple[Experts, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Experts, tokens, weights and choices: spread over all experts, or nearly all tokens on the first two."""
    generator = torch.Generator().manual_seed(rows)
    experts = Experts(TEXT)
    for parameter in experts.parameters():
        parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    x_ND = torch.randn(rows, TEXT.hidden_size, generator=generator)
    chosen_NK = torch.rand(rows, TEXT.n_routed_experts, generator=generator).topk(2).indices
    if skewed:
        chosen_NK[rows // 8 :] = torch.tensor([0, 1])
    return experts, x_ND, torch.rand(rows, 2, generator=generator), chosen_NK


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 16, 64])
@torch.no_grad()
def test_rows_are_those_of_any_forward_and_the_same_bits_in_any_batch(rows: int, skewed: bool) -> None:
    experts, x_ND, weights_NK, chosen_NK = case(rows, skewed)
    with torch_threads(1):
        given = x_ND, weights_NK, chosen_NK
        out_ND = experts(*given, BATCH_INVARIANT)
        alone = [experts(*(each[n : n + 1] for each in given), BATCH_INVARIANT) for n in range(rows)]
    torch.testing.assert_close(out_ND, experts(*given))
    assert torch.equal(out_ND, torch.cat(alone))
