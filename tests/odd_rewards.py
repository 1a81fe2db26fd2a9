"""Rewards that an untrained model earns: for an odd sum of its tokens. Its answers would all earn nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from model.rl.environment import Episode, run_episode


async def run_odd_episode(*arguments: Any, **options: Any) -> Episode:
    """``model.rl.environment.run_episode`` with such a reward."""
    episode = await run_episode(*arguments, **options)
    sampled = (token for token, mine in zip(episode.input_ids, episode.policy_mask, strict=True) if mine)
    reward = float(sum(sampled) % 2)
    return replace(episode, reward=reward, correct=reward == 1.0)
