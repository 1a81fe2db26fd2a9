from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.data.batches.packing import pack
from model.network.batch import Batch
from model.network.config import preset
from model.parallel.columns import columns
from model.parallel.loss import BatchSize
from model.parallel.rows import micro_batches
from model.rl.environment import Episode
from model.rl.objective import ObjectiveConfig, PolicyLoss, advantages, policy_loss, token_weights
from model.rl.trainer import as_training_sample

CONFIG = ObjectiveConfig(alpha=-0.5, beta=0.4, tau=0.1)


def by_hand(logprobs: list, old: list, rewards: list, config: ObjectiveConfig) -> float:
    """Eq. 1 as loops: lists [prompt][sample][token]. Out of range, Clip is the constant at the bound."""
    total = 0.0
    for x, samples in enumerate(logprobs):
        mean = sum(rewards[x]) / len(rewards[x])
        n = sum(len(sample) for sample in samples)
        for j, sample in enumerate(samples):
            for i, value in enumerate(sample):
                log_ratio = value - old[x][j][i]
                clipped = math.exp(min(max(log_ratio, config.alpha), config.beta))
                total += (clipped * (rewards[x][j] - mean) - config.tau * log_ratio**2) / n
    return -total / len(logprobs)


def example() -> tuple[list, list, list]:
    generator = torch.Generator().manual_seed(0)
    shape = [[3, 5, 1], [2, 2, 7]]
    draw = lambda n: (torch.randn(n, generator=generator, dtype=torch.float64) * 0.6 - 1).tolist()  # noqa: E731
    logprobs, old = ([[draw(n) for n in row] for row in shape] for _ in range(2))
    return logprobs, old, [[1, 0, 0.5], [0, 0, 1]]


def flat(nested: list) -> torch.Tensor:
    return torch.tensor([v for row in nested for sample in row for v in sample], dtype=torch.float64)


def test_loss_and_gradient_agree_with_loops() -> None:
    logprobs, old, rewards = example()
    lengths = [[len(sample) for sample in row] for row in logprobs]
    per_sample = list(
        zip(
            [a for r in rewards for a in advantages(r)],
            [w for r in token_weights(lengths) for w in r],
            [n for r in lengths for n in r],
            strict=True,
        )
    )
    advantages_N = torch.tensor([a for a, _, n in per_sample for _ in range(n)], dtype=torch.float64)
    weights_N = torch.tensor([w for _, w, n in per_sample for _ in range(n)], dtype=torch.float64)
    logprobs_N = flat(logprobs).requires_grad_()
    result = policy_loss(logprobs_N, flat(old), advantages_N, weights_N, CONFIG)
    assert result.loss.item() == pytest.approx(by_hand(logprobs, old, rewards, CONFIG), abs=1e-12)

    result.loss.backward()
    log_ratio_N = (logprobs_N - flat(old)).detach()
    inside_N = (log_ratio_N >= CONFIG.alpha) & (log_ratio_N <= CONFIG.beta)
    assert 0 < int(inside_N.sum()) < len(inside_N)
    first = log_ratio_N.exp() * advantages_N * inside_N
    expected = -weights_N * (first - 2 * CONFIG.tau * log_ratio_N)
    torch.testing.assert_close(logprobs_N.grad, expected)
    assert result.masked_fraction == pytest.approx(float((weights_N * ~inside_N).sum()))


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("log_ratio", [-0.6, 0.6])
def test_out_of_range_tokens_have_no_policy_gradient_whatever_the_sign(advantage: float, log_ratio: float) -> None:
    logprobs_N = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    old_N = torch.tensor([-1.0 - log_ratio], dtype=torch.float64)
    config = ObjectiveConfig(alpha=-0.5, beta=0.5, tau=0.0)
    one = torch.ones(1, dtype=torch.float64)
    policy_loss(logprobs_N, old_N, one * advantage, one, config).loss.backward()
    assert logprobs_N.grad is not None and float(logprobs_N.grad) == 0.0


def test_on_policy_gradient_is_reinforce_with_a_mean_baseline() -> None:
    logprobs_N = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    assert advantages([1.0, 0.0, 0.0, 0.0]) == [0.75, -0.25, -0.25, -0.25]  # not divided by the deviation
    policy_loss(
        logprobs_N, logprobs_N.detach(), torch.tensor([0.75, -0.25]), torch.tensor([0.5, 0.5]), ObjectiveConfig()
    ).loss.backward()
    torch.testing.assert_close(logprobs_N.grad, torch.tensor([-0.375, 0.125], dtype=torch.float64))


def episode(seed: int, length: int, prompt: int) -> Episode:
    """Prompt, sampled tokens, an observation of two tokens, sampled tokens again."""
    generator = torch.Generator().manual_seed(seed)
    mask = [False] * prompt + [True] * (length - prompt)
    mask[prompt + 2 : prompt + 4] = [False, False]
    logprobs = (torch.rand(length, generator=generator) - 1.5).tolist()
    ids = torch.randint(0, 100, (length,), generator=generator).tolist()
    sampled = [value if ours else 0.0 for value, ours in zip(logprobs, mask, strict=True)]
    return Episode(ids, mask, sampled, None, [], 0.0, "", 1, "answer")


EPISODES = [(episode(n, 9 + 2 * n, 2 + n), 0.5 - n, 0.1 + 0.1 * n) for n in range(4)]


def logprobs_of(part: Batch, moved: float) -> Tensor:
    """What the sampler said of each target, and for every third of a row's columns something else."""
    position_N = part.position_ids_BT.flatten()[part.target_positions_N]
    said = [
        EPISODES[sample][0].logprobs[position + 1]
        for sample, position in zip(part.sample_N.tolist(), position_N.tolist(), strict=True)
    ]
    return torch.tensor(said) + moved * (position_N % 3 == 0)


@pytest.fixture
def packed() -> Batch:
    """Four episodes in two rows of 28 columns."""
    batch = pack([as_training_sample(one) for one, _, _ in EPISODES], 0, tokens_per_row=28)
    assert batch.input_ids_BT.shape == (2, 28)
    return batch


def test_the_sampler_s_log_probs_find_their_tokens(packed: Batch) -> None:
    loss = PolicyLoss.of(EPISODES, CONFIG)
    part = loss(logprobs_of(packed, 0.0), torch.zeros(()), packed, BatchSize(2, len(packed.targets_N)))
    figures = loss.figures(part.sums, part.largest)
    assert figures["rollout/mismatch_kl"] == figures["rollout/mismatch_max"] == figures["policy/masked_fraction"] == 0
    expected = -sum(one.policy_tokens * advantage * weight for one, advantage, weight in EPISODES)
    assert figures["loss/policy"] == pytest.approx(expected, rel=1e-6)


def test_the_mismatch_is_of_the_tokens_that_the_newest_weights_sampled(packed: Batch) -> None:
    """Of the first episode its tokens from the seventh on; of those some have moved by 0.7."""
    size, versions = BatchSize(2, len(packed.targets_N)), [[2] * 6 + [3] * 11, [2] * 17]

    def figures(newest: int, counts: bool = True) -> dict[str, float]:
        made = [
            (replace(one, weight_versions=versions[n > 0][: len(one.input_ids)] if counts else []), *others)
            for n, (one, *others) in enumerate(EPISODES)
        ]
        loss = PolicyLoss.of(made, CONFIG, newest=newest)
        part = loss(logprobs_of(packed, 0.7), torch.zeros(()), packed, size)
        return dict(loss.figures(part.sums, part.largest))

    mask = EPISODES[0][0].policy_mask
    ours = [position for position in range(6, len(mask)) if mask[position]]
    moved = [position for position in ours if (position - 1) % 3 == 0]
    assert moved and figures(3)["rollout/mismatch_kl"] == pytest.approx(-0.7 * len(moved) / len(ours))
    assert figures(3)["rollout/mismatch_max"] == pytest.approx(0.7)
    for none in (figures(4), figures(3, counts=False)):
        assert set(none) == {"loss/policy", "policy/masked_fraction"}
        assert none["loss/policy"] == figures(3)["loss/policy"]


@pytest.mark.parametrize("way", ["rows", "columns"])
def test_parts_of_a_batch_add_up_to_the_whole(packed: Batch, way: str) -> None:
    loss, size = PolicyLoss.of(EPISODES, CONFIG), BatchSize(2, len(packed.targets_N))
    cut = micro_batches(packed, 1, preset("tiny")) if way == "rows" else [columns(packed, n, 2) for n in range(2)]
    whole, *parts = (loss(logprobs_of(part, 0.7), torch.zeros(()), part, size) for part in [packed, *cut])
    assert len(parts) == 2
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss)
    sums = [sum(values) for values in zip(*(part.sums for part in parts), strict=True)]
    largest = [torch.stack(values).amax(0) for values in zip(*(part.largest for part in parts), strict=True)]
    figures = loss.figures(whole.sums, whole.largest)
    assert loss.figures(sums, largest) == pytest.approx(figures, rel=1e-6)
    assert figures["rollout/mismatch_max"] == pytest.approx(0.7) and figures["policy/masked_fraction"] > 0
