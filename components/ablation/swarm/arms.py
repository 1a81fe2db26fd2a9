"""The arms of the swarm ablation (source: K2.5 section on Agent Swarm; what is taken away in turn is ours).

All arms of a seed start from one checkpoint: the cold start, whose frozen copy speaks for the sub-agents. They differ
in how PARL trains the orchestrator.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from model.boundary.errors import MoonflowError

TRAINED = "trained"
START = "swarm_start"
"""The step that makes the cold start of a seed."""


@dataclass(frozen=True)
class Arm:
    """One way to train the orchestrator.

    Attributes:
        meaning: for the reader of a table.
        parallel, finish: factors of the weights of the two auxiliary rewards.
        anneals: whether these weights fall to 0 within the run.
        forced: whether the orchestrator has no tools of its own in training, and must delegate.
    """

    name: str
    meaning: str
    parallel: float = 1.0
    finish: float = 1.0
    anneals: bool = True
    forced: bool = False

    def annealed_until(self, share: float) -> float:
        """The share of the rounds after which the weights are 0, where ``share`` is that of the whole recipe."""
        return share if self.anneals else math.inf


ARMS = {
    arm.name: arm
    for arm in (
        Arm(TRAINED, "PARL: both auxiliary rewards, which fall to 0"),
        Arm("no_parallel", "without the reward for parallel work", parallel=0.0),
        Arm("no_finish", "without the reward for finished subtasks", finish=0.0),
        Arm("constant", "the auxiliary rewards never fall", anneals=False),
        Arm("forced", "in training, the orchestrator has no tools of its own and must delegate", forced=True),
    )
}


def starts(seeds: Iterable[int]) -> list[str]:
    """The seeds, as the pipeline's outer loop names them."""
    return [str(seed) for seed in seeds]


def cells(seeds: Iterable[int]) -> list[str]:
    """Every arm with every seed, as their tasks are named."""
    return [f"{arm}-{seed}" for seed in seeds for arm in ARMS]


def seed_of(uri: str) -> int:
    """The seed of the cold start at this address, which the arms that begin with it have too.

    Raises:
        MoonflowError: it is no cold start's.
    """
    found = re.search(rf"/{START}-(\d+)/\d+/?$", uri)
    if found is None:
        raise MoonflowError(f"{uri} is no output of {START}, which an arm starts from: give the parent its checkpoint")
    return int(found[1])
