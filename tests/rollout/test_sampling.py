"""The sampler against the same arithmetic in float64, where nothing underflows."""

from __future__ import annotations

import pytest
import torch

from model.rollout.protocol import GREEDY_BELOW, Request
from model.rollout.sampling import sample
from tests.drawn import draw

LOGITS_BV = draw(6, 500) * 20
CHANCES = [1e-6, 0.1, 0.37, 0.5, 0.93, 1 - 1e-6]


def drawn(**settings: float) -> tuple[list[int], list[float]]:
    return sample(LOGITS_BV, [Request([0], **settings)] * len(CHANCES), CHANCES)  # type: ignore[arg-type]


def expected(temperature: float, top_p: float) -> tuple[list[int], list[float]]:
    tokens, logprobs = [], []
    for logits_V, chance in zip(LOGITS_BV.double(), CHANCES, strict=True):
        logprobs_V = (logits_V / temperature).log_softmax(-1)
        order_V = logprobs_V.argsort(descending=True, stable=True)
        reached_V = logprobs_V[order_V].exp().cumsum(-1)
        kept = order_V[: int((reached_V < top_p).sum()) + 1].sort().values
        reached = logprobs_V[kept].exp().cumsum(-1)
        tokens.append(int(kept[int((reached <= chance * reached[-1]).sum())]))
        logprobs.append(float(logprobs_V[tokens[-1]]))
    return tokens, logprobs


@pytest.mark.parametrize("temperature", [GREEDY_BELOW, 1e-4, 1e-3, 0.01, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [1e-300, 1e-45, 1e-8, 0.3, 0.9, 1.0])
def test_tokens_and_logprobs_are_those_of_float64(temperature: float, top_p: float):
    tokens, logprobs = drawn(temperature=temperature, top_p=top_p)
    assert tokens == expected(temperature, top_p)[0]
    assert logprobs == pytest.approx(expected(temperature, top_p)[1], rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-38, 1e-9, GREEDY_BELOW * (1 - 1e-9), 0.0])
def test_what_is_colder_than_the_sampler_can_tell_is_greedy(temperature: float):
    assert drawn(temperature=temperature) == drawn(temperature=0.0)
    assert drawn(temperature=0.0)[0] == LOGITS_BV.argmax(-1).tolist()


def test_close_logits_keep_their_odds_at_a_low_temperature():
    logits_BV = torch.tensor([[30.0, 30.0 - 2**-14]] * 2)  # 2**-14 / 1e-4 = 0.61 nats
    tokens, logprobs = sample(logits_BV, [Request([0], temperature=1e-4)] * 2, [0.0, 0.9])
    odds = torch.tensor([0.0, -(2**-14) / 1e-4], dtype=torch.float64).log_softmax(-1)
    assert tokens == [0, 1] and logprobs == pytest.approx(odds.tolist(), abs=1e-6)


def test_taking_off_the_largest_leaves_the_bits_at_temperature_one():
    _, logprobs = drawn(temperature=1.0)
    tokens, _ = drawn(temperature=1.0)
    assert logprobs == LOGITS_BV.log_softmax(-1)[range(len(tokens)), tokens].tolist()
