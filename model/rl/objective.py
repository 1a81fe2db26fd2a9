"""The policy objective of joint RL (source: K2.5 paper, Eq. 1), as a loss to minimise.

Shape legend: N policy tokens of a batch, in any fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ObjectiveConfig:
    """Constants of Eq. 1; the paper does not disclose them, these values are ours.

    Attributes:
        alpha, beta: bounds of the log-ratio, in nats; outside them a token's policy gradient is zero. Read as bounds
            of log rho (the paper's text calls both positive, which would freeze every on-policy token).
        tau: weight of the squared log-ratio.
    """

    alpha: float = -1.0
    beta: float = 1.0
    tau: float = 0.05


@dataclass(frozen=True)
class Objective:
    """The loss and what to watch. All means are over the same tokens with the same weights as the loss."""

    loss: torch.Tensor
    masked_fraction: float
    log_ratio: float


def advantages(rewards: Sequence[float]) -> list[float]:
    """r_j - mean of its group of K samples; no division by the standard deviation (Eq. 1)."""
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def token_weights(groups: Sequence[Sequence[int]]) -> list[list[float]]:
    """1 / (N_x * prompts) for every sample: the outer mean over prompts, each normalised by its own N = sum |y_j|.

    Args:
        groups: per prompt the number of policy tokens of each of its samples.
    """
    return [[1.0 / (max(1, sum(lengths)) * len(groups))] * len(lengths) for lengths in groups]


def policy_loss(
    logprobs_N: torch.Tensor,
    old_logprobs_N: torch.Tensor,
    advantages_N: torch.Tensor,
    weights_N: torch.Tensor,
    config: ObjectiveConfig,
) -> Objective:
    """-sum_i w_i * [clip(rho_i, e^alpha, e^beta) * A_i - tau * (log rho_i)^2].

    ``clip`` is a gradient mask: whatever the sign of A_i, a token whose log-ratio is outside [alpha, beta] gives no
    gradient through the first term (PPO would let one side pass). The second term always pulls the ratio to 1.

    Args:
        logprobs_N: the trained policy's log-probabilities (nats) of the sampled tokens, with gradient.
        old_logprobs_N: the sampler's own, as stored at rollout: they also correct train-inference mismatch.
        advantages_N: advantage of the sample each token belongs to.
        weights_N: as from `token_weights`; a part of a batch keeps the weights of the whole.
    """
    log_ratio_N = logprobs_N - old_logprobs_N
    ratio_N = log_ratio_N.clamp(config.alpha, config.beta).exp()
    gain_N = ratio_N * advantages_N - config.tau * log_ratio_N.square()
    inside_N = (log_ratio_N >= config.alpha) & (log_ratio_N <= config.beta)
    return Objective(
        loss=-(weights_N * gain_N).sum(),
        masked_fraction=float((weights_N * ~inside_N).sum()),
        log_ratio=float((weights_N * log_ratio_N.detach()).sum()),
    )
