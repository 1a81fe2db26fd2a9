"""The figures of a swarm ablation: each arm's swarm and what it is compared with, seed by seed (source: ours).

``table`` puts the figures into words, ``claims`` judges by them, ``page`` shows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from components.ablation.cells import arm_of, without_result
from components.ablation.curves import Events
from components.ablation.spread import spread
from components.ablation.swarm.arms import ARMS
from model.swarm.ways import EASY, FORCED, SWARM, best_easy, best_single

STEP = "swarm_arm"
MEASURES = ("f1", "critical_steps", "seconds", "context_tokens", "delegated")
BROKEN = ("failed", "lost")
"""Of a row: episodes that broke, and those in which a sub-agent broke; summed where the measures are averaged."""
FLAT_FROM = 4  # the number of parts from which on time should be nearly the same (ours)

Result = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]
Event = Mapping[str, float]


def compare(results: Sequence[Result], events: Events, cells: Sequence[str]) -> dict[str, Any]:
    """The arms side by side.

    Args:
        results: ``extra["ablation"]`` of each finished arm and seed.
        events: task name -> rows of its ``metrics.jsonl``.
        cells: those that the run should have.

    Returns:
        ``arms``: by name, also of those without any result, its seeds; ``table`` and ``halved``, by way of playing and
        number of parts each of ``MEASURES`` with the standard deviation over seeds, and ``BROKEN``; and ``figures``, by
        seed those of ``figures_of`` and ``rounds_of``. ``no_result``: the cells without a result. ``runs``: the results
        as they came.
    """
    by_arm = {name: {r["seed"]: r for r in results if r["arm"] == name} for name in ARMS}
    no_result = without_result(cells, results)
    expected = {arm_of(cell) for cell in no_result} | {result["arm"] for result in results}
    found = {}
    for name in (name for name in ARMS if name in expected):
        runs = [by_arm[name][seed] for seed in sorted(by_arm[name])]
        found[name] = {
            "seeds": [run["seed"] for run in runs],
            "table": _table([run["table"] for run in runs]),
            "halved": _table([run["halved"] for run in runs]),
            "figures": {
                str(run["seed"]): figures_of(run) | rounds_of(events.get(f"{STEP}-{name}-{run['seed']}", ()))
                for run in runs
            },
        }
    return {"arms": found, "no_result": no_result, "runs": list(results)}


def figures_of(result: Result) -> dict[str, float | None]:
    """What the swarm of one run gains over the best single agent of the same checkpoint; None where a row is missing.

    - ``f1_gain_points``, ``easy_overhead``: as ``model.swarm.ways.summary``.
    - ``easy_f1``, ``wide_f1``, ``swarm_f1``: F1 of the swarm on easy tasks, at the largest number of parts, and on all
      tasks with parts; ``must_delegate_f1``: on these, where it must delegate.
    - ``easy_f1_points``: F1 of the swarm on easy tasks minus that of the best single agent there, in points.
    - ``wide_f1_points``, ``wide_steps_ratio``, ``wide_seconds_ratio``: at the largest number of parts, the swarm's F1
      minus that agent's in points, and that agent's steps and seconds by the swarm's.
    - ``growth``: seconds of the swarm at the largest number of parts by those at the smallest from ``FLAT_FROM`` on.
    - ``context_ratio``: at the largest number of parts, that agent's largest context by the swarm's.
    - ``halved_swarm_points``, ``halved_single_points``: F1 that the swarm and that agent lose in windows of half the
      size, in points; ``halved_swarm_f1``, ``halved_single_f1``: the swarm's F1 there, and the best single agent's.
    """
    table, halved = result["table"], result["halved"]
    best, sizes = best_single(table), sorted({row["size"] for row in table if row["family"] != EASY})
    wide, flat = sizes[-1], [size for size in sizes if size >= FLAT_FROM]
    found = {name: result["summary"].get(name) for name in ("f1_gain_points", "easy_overhead")}
    at = {way: {name: _mean(table, way, name, wide) for name in MEASURES} for way in (SWARM, best)}
    easy = {way: _easy_f1(table, way) for way in (SWARM, best_easy(table))}
    found |= {"easy_f1": easy[SWARM], "easy_f1_points": _minus(easy[SWARM], easy[best_easy(table)])}
    found |= {"wide_f1": at[SWARM]["f1"], "swarm_f1": _mean(table, SWARM, "f1")}
    found["must_delegate_f1"] = _mean(table, FORCED, "f1")
    found["wide_f1_points"] = _minus(at[SWARM]["f1"], at[best]["f1"])
    found["wide_steps_ratio"] = _ratio(at[best]["critical_steps"], at[SWARM]["critical_steps"])
    found["wide_seconds_ratio"] = _ratio(at[best]["seconds"], at[SWARM]["seconds"])
    found["context_ratio"] = _ratio(at[best]["context_tokens"], at[SWARM]["context_tokens"])
    ends = [_mean(table, SWARM, "seconds", size) for size in (flat[-1], flat[0])] if len(flat) > 1 else [None, None]
    found["growth"] = _ratio(*ends)
    for name, way in (("halved_swarm_points", SWARM), ("halved_single_points", best)):
        found[name] = _minus(_mean(table, way, "f1"), _mean(halved, way, "f1"))
    found["halved_swarm_f1"] = _mean(halved, SWARM, "f1")
    found["halved_single_f1"] = _mean(halved, best_single(halved), "f1")
    return found


def _easy_f1(table: Rows, way: str) -> float | None:
    easy = [row["f1"] for row in table if row["way"] == way and row["family"] == EASY]
    return fmean(easy) if easy else None


def rounds_of(rows: Sequence[Event]) -> dict[str, float | None]:
    """What PARL's rounds of one run show; None where it has no such rounds.

    - ``reward_first``, ``reward_last``: the reward without bonuses in the first and the second half of the rounds
      at the end in which the bonuses have no weight; ``reward_before``: in as many rounds as a half just before these.
    - ``subtasks_last``, ``parallelism_last``, ``finish_last``: in the last quarter of all rounds, the subtasks of an
      episode, its assignments at once, and the reward for finished subtasks. ``bonuses_earned``: there, both auxiliary
      rewards, without their weights.
    """
    rounds = [row for row in rows if "reward/perf" in row]
    last = rounds[-max(1, len(rounds) // 4) :]
    weighted = max((n for n, row in enumerate(rounds, start=1) if row["swarm/auxiliary_scale"] > 0), default=0)
    half = (len(rounds) - weighted) // 2
    bonuses = [_over(last, f"reward/{name}") for name in ("parallel", "finish")]
    return {
        "reward_before": _over(rounds[max(0, weighted - half) : weighted], "reward/perf"),
        "reward_first": _over(rounds[weighted : weighted + half], "reward/perf"),
        "reward_last": _over(rounds[len(rounds) - half :], "reward/perf") if half else None,
        "subtasks_last": _over(last, "swarm/subtasks"),
        "parallelism_last": _over(last, "swarm/parallelism"),
        "finish_last": bonuses[1],
        "bonuses_earned": None if bonuses[0] is None or bonuses[1] is None else bonuses[0] + bonuses[1],
    }


def _over(rows: Sequence[Event], name: str) -> float | None:
    values = [row[name] for row in rows if name in row]
    return fmean(values) if values else None


def _mean(rows: Rows, way: str, name: str, size: int | None = None) -> float | None:
    """Mean over the families with parts; None if there are no such rows, or all episodes of one broke."""
    chosen = [row for row in rows if row["way"] == way and row["family"] != EASY and size in (None, row["size"])]
    return fmean(row[name] for row in chosen) if chosen and all(name in row for row in chosen) else None


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else 100 * (one - other)


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _table(tables: Sequence[Rows]) -> list[dict[str, Any]]:
    """Number of parts and way -> each measure over the seeds; easy tasks, of one part, come first."""
    keys = list(dict.fromkeys((row["size"], row["way"]) for rows in tables for row in rows))
    found = []
    for size, way in sorted(keys, key=lambda key: key[0]):
        line: dict[str, Any] = {"size": size, "way": way}
        for name in MEASURES:
            each = [
                fmean(row[name] for row in chosen)
                for rows in tables
                if (chosen := [row for row in rows if (row["size"], row["way"]) == (size, way) and name in row])
            ]
            line[name] = spread(each) if each else None
        rows = [row for table in tables for row in table if (row["size"], row["way"]) == (size, way)]
        line |= {name: sum(row[name] for row in rows) for name in BROKEN}
        found.append(line)
    return found


def values(arm: Mapping[str, Any], name: str) -> dict[str, float]:
    """Seed -> a figure of an arm, for the seeds that have it."""
    return {seed: figures[name] for seed, figures in arm["figures"].items() if figures[name] is not None}


def metrics(found: Mapping[str, Any]) -> dict[str, float]:
    """Means over seeds as MLflow metrics: ``<figure>/<arm>``, and ``<measure>/<arm>/<way>/n<parts>``."""
    means: dict[str, float] = {}
    for name, arm in found["arms"].items():
        for figure in next(iter(arm["figures"].values()), {}):
            if each := values(arm, figure):
                means[f"{figure}/{name}"] = fmean(each.values())
        for row in arm["table"]:
            for measure in MEASURES:
                if row[measure] is not None:
                    means[f"{measure}/{name}/{row['way']}/n{row['size']}"] = float(row[measure]["mean"])
    return means
