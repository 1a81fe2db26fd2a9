"""The policy objective of joint RL (source: K2.5 paper, Eq. 1), as a loss to minimise.

Shape legend: N policy tokens of a batch, in any fixed order; S episodes; L tokens of all episodes together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

import torch
from torch import Tensor

from model.network.batch import Batch
from model.parallel.loss import BatchSize, Figures, LossPart
from model.rl.environment import Episode


@dataclass(frozen=True)
class ObjectiveConfig:
    """Constants of Eq. 1. The paper does not disclose them; these values are ours.

    Attributes:
        alpha, beta: bounds of the log-ratio, in nats. Outside of them a token has no policy gradient. We read them as
            bounds of log rho: the paper calls both positive, which would freeze every on-policy token.
        tau: weight of the squared log-ratio.
    """

    alpha: float = -1.0
    beta: float = 1.0
    tau: float = 0.05


@dataclass(frozen=True)
class Objective:
    """The loss and what to watch. All means are over the same tokens with the same weights as the loss."""

    loss: Tensor
    masked_fraction: float


def advantages(rewards: Sequence[float]) -> list[float]:
    """Reward minus mean reward, of each of the K samples of a prompt; not divided by their deviation (Eq. 1)."""
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def token_weights(groups: Sequence[Sequence[int]]) -> list[list[float]]:
    """The weight of each sample's tokens: 1 / (number of prompts * policy tokens of all its prompt's samples) (Eq. 1).

    Args:
        groups: for each prompt, the number of policy tokens of each of its samples.

    Returns:
        The same structure with weights.
    """
    return [[1.0 / (max(1, sum(lengths)) * len(groups))] * len(lengths) for lengths in groups]


def policy_loss(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    weights_N: Tensor,
    config: ObjectiveConfig,
) -> Objective:
    """-sum_i w_i * [clip(rho_i, e^alpha, e^beta) * A_i - tau * (log rho_i)^2], with rho_i the ratio of token i.

    ``clip`` masks the gradient: a token whose log-ratio is outside [alpha, beta] gives no gradient through the first
    term, whatever the sign of A_i (PPO would let one side pass). The second term always pulls the ratio towards 1.

    Args:
        logprobs_N: log-probs (nats) of the sampled tokens under the trained policy, with gradient.
        old_logprobs_N: the sampler's log-probs, stored at rollout; they also correct the mismatch between training and
            inference.
        advantages_N: advantage of the sample that each token belongs to.
        weights_N: from `token_weights`; a part of a batch keeps the weights of the whole batch.
    """
    log_ratio_N = logprobs_N - old_logprobs_N
    ratio_N = log_ratio_N.clamp(config.alpha, config.beta).exp()
    gain_N = ratio_N * advantages_N - config.tau * log_ratio_N.square()
    inside_N = (log_ratio_N >= config.alpha) & (log_ratio_N <= config.beta)
    return Objective(
        loss=-(weights_N * gain_N).sum(),
        masked_fraction=float((weights_N * ~inside_N).sum()),
    )


@dataclass(frozen=True)
class PolicyLoss:
    """``model.parallel.loss.Loss`` of packed episodes: Eq. 1, whatever part of the batch it is given.

    Figures: ``loss/policy``; ``policy/masked_fraction``, the weight of the tokens outside the bounds;
    ``rollout/mismatch_kl`` and ``rollout/mismatch_max``, the mean of -log rho and the largest |log rho| in nats, over
    the tokens that the newest weights sampled; without such a token they are left out.

    Attributes:
        config: constants of Eq. 1.
        starts_S: where each episode begins in ``sampled_L``.
        sampled_L: the sampler's log-prob of each token, in nats.
        advantages_S, weights_S: of each episode's tokens.
        newest_L: bool, whether the newest weights sampled the token; None: they sampled all.
    """

    config: ObjectiveConfig
    starts_S: Tensor
    sampled_L: Tensor
    advantages_S: Tensor
    weights_S: Tensor
    newest_L: Tensor | None = None

    @classmethod
    def of(
        cls,
        episodes: Sequence[tuple[Episode, float, float]],
        config: ObjectiveConfig,
        device: torch.device | None = None,
        newest: int | None = None,
    ) -> Self:
        """
        Args:
            episodes: each with its advantage and its tokens' weight, in the order in which they are packed.
            newest: how often the engine has been given weights (``Episode.weight_versions``); None: all tokens are of
                the newest ones.
        """
        lengths = [len(episode.input_ids) for episode, _, _ in episodes]
        return cls(
            config,
            torch.tensor([0, *accumulate(lengths)][:-1], device=device),
            torch.tensor([value for episode, _, _ in episodes for value in episode.logprobs], device=device),
            torch.tensor([advantage for _, advantage, _ in episodes], device=device),
            torch.tensor([weight for _, _, weight in episodes], device=device),
            None if newest is None else torch.tensor(_sampled_by(newest, episodes), device=device),
        )

    def __call__(self, logprobs_N: Tensor, balance: Tensor, part: Batch, size: BatchSize) -> LossPart:
        # A target is the token after its position: where that stands in its episode finds the sampler's log-prob,
        # however rows and columns are divided.
        position_N = part.position_ids_BT.flatten()[part.target_positions_N]
        token_N = self.starts_S[part.sample_N] + position_N + 1
        old_N = self.sampled_L[token_N]
        advantages_N, weights_N = self.advantages_S[part.sample_N], self.weights_S[part.sample_N]
        objective = policy_loss(logprobs_N, old_N, advantages_N, weights_N, self.config)
        gap_N = (logprobs_N - old_N).detach().double()
        if self.newest_L is not None:
            gap_N = gap_N[self.newest_L[token_N]]
        sums = [float(objective.loss.detach()), objective.masked_fraction, float(gap_N.sum()), len(gap_N)]
        largest = max(gap_N.abs().tolist(), default=0.0)
        return LossPart(objective.loss, (gap_N.new_tensor(sums),), (gap_N.new_tensor(largest),))

    def figures(self, sums: Sequence[Tensor], largest: Sequence[Tensor]) -> Figures:
        loss, masked, gap, count = sums[0].tolist()
        figures = {"loss/policy": loss, "policy/masked_fraction": masked}
        if self.newest_L is None or count:
            figures |= {"rollout/mismatch_kl": -gap / max(1.0, count), "rollout/mismatch_max": float(largest[0])}
        return figures


def _sampled_by(newest: int, episodes: Sequence[tuple[Episode, float, float]]) -> list[bool]:
    versions = [episode.weight_versions or [0] * len(episode.input_ids) for episode, _, _ in episodes]
    return [version == newest for each in versions for version in each]
