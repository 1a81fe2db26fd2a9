"""How held-out tasks are played that a swarm is measured on, and what the swarm gains; imports nothing heavy (ours).

``SWARM`` is the orchestrator as it is, ``FORCED`` one that must delegate, ``ORACLE`` a scripted orchestrator that
splits each task without a mistake over the checkpoint's own sub-agents, ``UNTRAINED`` the swarm of a checkpoint that
PARL has not trained, and ``SINGLE`` are one agent, whose episode ends with its window, or whose context is shortened
(``model.swarm.baselines``). ``UNTRAINED_SINGLE`` are the same agents with that checkpoint's weights: PARL may make a
model a worse single agent than it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

Rows = Sequence[Mapping[str, Any]]
EASY = "world_easy"
SWARM, FORCED, ORACLE, UNTRAINED = "swarm", "must_delegate", "oracle_split", "untrained_swarm"
SINGLE = ("single", "hide_tool_result", "discard_all")
UNTRAINED_SINGLE = tuple(f"untrained_{way}" for way in SINGLE)
AGENTS = (*SINGLE, *UNTRAINED_SINGLE)
"""What a swarm is compared with: the best of them."""
WAYS = (SWARM, UNTRAINED, FORCED, ORACLE, *AGENTS)
EASY_AGENTS = ("single", "untrained_single")
EASY_WAYS = (SWARM, UNTRAINED, *EASY_AGENTS)
"""How easy tasks are played: they have no parts that anybody could divide."""


def summary(table: Rows) -> dict[str, Any]:
    """What the swarm gains over the best single agent, over the tasks of two parts or more; None where a row lacks.

    - ``f1_gain_points``: 100 x (F1 of the swarm - F1 of the best of ``AGENTS``, by its mean);
    - ``critical_steps_ratio``, ``wall_clock_ratio``: that agent's steps and seconds by the swarm's; above 1 the swarm
      is faster. An agent that stops early, as its window is used up, looks faster than it is.
    - ``easy_overhead``: critical steps of the swarm by those of the best plain single agent, on tasks that need no
      division.
    """

    def figures(way: str, easy: bool, name: str) -> float:
        values = [each[name] for each in table if each["way"] == way and (each["family"] == EASY) is easy]
        return mean(values) if values else float("nan")

    def by_the_swarms(name: str) -> float:
        return figures(best, False, name) / figures(SWARM, False, name)

    best, easiest = best_single(table), best_easy(table)
    try:
        found = {
            "f1_gain_points": 100 * (figures(SWARM, False, "f1") - figures(best, False, "f1")),
            "critical_steps_ratio": by_the_swarms("critical_steps"),
            "easy_overhead": figures(SWARM, True, "critical_steps") / figures(easiest, True, "critical_steps"),
        }
    except KeyError:  # every episode of a row broke
        return dict.fromkeys(("f1_gain_points", "critical_steps_ratio", "wall_clock_ratio", "easy_overhead"))
    # Seconds may be measured on fewer tasks, which all broke.
    timed = all("seconds" in row for row in table if row["way"] in (SWARM, best) and row["family"] != EASY)
    found["wall_clock_ratio"] = by_the_swarms("seconds") if timed else float("nan")
    return {"best_single": best} | {name: round(value, 3) if value == value else None for name, value in found.items()}


def best_single(table: Rows) -> str:
    """The single agent of ``AGENTS`` with the highest mean F1 over the tasks of two parts or more."""
    return _best(AGENTS, [each for each in table if each["family"] != EASY])


def best_easy(table: Rows) -> str:
    """The single agent of ``EASY_AGENTS`` with the highest mean F1 over easy tasks."""
    return _best(EASY_AGENTS, [each for each in table if each["family"] == EASY])


def _best(ways: Sequence[str], table: Rows) -> str:
    def f1(way: str) -> float:
        values = [each["f1"] for each in table if each["way"] == way]
        return mean(values) if values else float("-inf")

    return max(ways, key=f1)
