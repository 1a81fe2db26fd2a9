"""Which of two frozen engines speaks for an episode's sub-agents: small ones first, larger ones later.

Source: K2.5 paper, PARL: training starts with small sub-agents and goes on to larger ones. It does not disclose the
schedule; the linear one is ours.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from model.rl.environment import derive_seed


@dataclass(frozen=True)
class SubAgentSchedule:
    """The share of prompts whose sub-agents are the larger ones, as a function of the round.

    Attributes:
        begin: the last round, from 0, with the small ones alone.
        end: the first round with the larger ones alone; in between the share rises linearly.
    """

    begin: float
    end: float

    @classmethod
    def of_shares(cls, iterations: int, begin: float, end: float) -> SubAgentSchedule:
        """From shares of the rounds, in [0, 1]."""
        return cls(begin * iterations, end * iterations)

    def share(self, iteration: int) -> float:
        """The larger ones' share of the episodes of a round."""
        if iteration >= self.end:
            return 1.0
        return max(0.0, (iteration - self.begin) / (self.end - self.begin)) if iteration > self.begin else 0.0

    def larger(self, iteration: int, key: str) -> bool:
        """Whether the larger ones speak in the episodes of the prompt with this key.

        All episodes of a prompt have the same sub-agents, as their rewards are compared with each other.
        """
        return derive_seed(zlib.crc32(key.encode()), iteration, 2) < self.share(iteration) * 2**31
