"""How much room RL gives to the answers of a family, by the limits of its held-out suites (ours)."""

from __future__ import annotations

from collections.abc import Iterable

from model.evals.suites import SUITES
from model.swarm.families import SWARM_FAMILIES  # PARL trains on them

MAX_TURNS = 3  # a program, a second one after an error, the answer; a suite may allow more


def most_turns(family: str) -> int:
    """Completions of an episode, at most."""
    return max([MAX_TURNS, *(suite.max_turns for suite in SUITES.values() if suite.family == family)])


def need_more(families: Iterable[str], max_new_tokens: int) -> list[str]:
    """The families of ``families`` whose suite allows longer completions than ``max_new_tokens``, sorted; not those of
    a swarm, which joint RL leaves out anyway."""
    longest: dict[str, int] = {}
    for suite in SUITES.values():
        longest[suite.family] = max(longest.get(suite.family, 0), suite.max_new_tokens)
    found = (name for name in families if longest.get(name, 0) > max_new_tokens and name not in SWARM_FAMILIES)
    return sorted(found)
