"""The experts of a decode step: as in the network, and a row's bits hang on nothing but the row."""

from __future__ import annotations

import pytest
import torch

from model.config import preset
from model.moe import Experts
from model.rollout import decoding

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
def test_rows_are_those_of_the_network_and_the_same_bits_in_any_batch(rows: int, skewed: bool) -> None:
    experts, x_ND, weights_NK, chosen_NK = case(rows, skewed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        out_ND = decoding._routed(experts, x_ND, weights_NK, chosen_NK)
        alone = [decoding._routed(experts, *(t[n : n + 1] for t in (x_ND, weights_NK, chosen_NK))) for n in range(rows)]
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(out_ND, experts(x_ND, weights_NK, chosen_NK))
    assert torch.equal(out_ND, torch.cat(alone))
