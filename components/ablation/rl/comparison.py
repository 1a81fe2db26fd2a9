"""The figures of an RL ablation: its arms, side by side (source: ours).

Arms are compared seed by seed, each with the one that it is to be better than; all of them are asked the same held-out
tasks. Scores are in points, 0 to 100.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from components.ablation.cells import without_result
from components.ablation.curves import Events
from components.ablation.rl.arms import ARMS, BEFORE, IMAGES, JOINT, MORE, RFT, STEP, SUITES, TEXTS, VISUAL
from components.ablation.spread import over_seeds, spread

TRAINED, OTHER, TEXT = "images, families of visual RL", "images, other families", "text"
AGAINST = {VISUAL: BEFORE, RFT: MORE, JOINT: RFT}
"""Arm -> the one that it is compared with."""
END = 10  # the first and the last rounds whose rewards are averaged, or a third of all if there are fewer than 30

Result = Mapping[str, Any]
Runs = Mapping[int, Result]


def compare(results: Sequence[Result], events: Events, cells: Sequence[str]) -> dict[str, Any]:
    """The arms side by side.

    Args:
        results: ``extra["ablation"]`` of each finished arm and seed.
        events: task name -> rows of its ``metrics.jsonl``.
        cells: those that the run should have.

    Returns:
        ``arms``: by name its seeds, its tokens, and by row (see ``rows_of``) the score with the standard deviation over
        seeds; ``no_result``: the cells without a result; ``gains``: by arm of ``AGAINST`` and row, what each seed has
        more than the other arm, with the mean and its 95% half width; ``rewards``: by arm that was trained by RL, the
        mean reward of the first and the last rounds of each seed; ``suites``: by suite its number of tasks and the
        largest standard error of a score; ``runs``: the results as they came.
    """
    by_arm = {name: {r["seed"]: r for r in results if r["arm"] == name} for name in ARMS}
    present = {name: runs for name, runs in by_arm.items() if runs}
    return {
        "arms": {name: _arm(runs) for name, runs in present.items()},
        "no_result": without_result(cells, results),
        "gains": {
            arm: _gains(present[other], present[arm])
            for arm, other in AGAINST.items()
            if arm in present and other in present
        },
        "rewards": {
            name: found for name in present if ARMS[name].rl and (found := _rewards(name, present[name], events))
        },
        "suites": _suites(results),
        "runs": list(results),
    }


def rows_of(result: Result) -> dict[str, float]:
    """Score by suite; then the means over the suites of images that visual RL trained on, of the other ones, of text,
    of each ability, and of each ability in each modality."""
    found = {name: 100 * score["value"] for name, score in result["scores"].items()}
    trained = result["visual_families"]
    groups: dict[str, list[str]] = {
        TRAINED: [name for name in IMAGES if name in trained],
        OTHER: [name for name in IMAGES if name not in trained],
        TEXT: list(TEXTS),
    }
    for suite in SUITES.values():
        for group in (suite.ability, f"{suite.ability}, {suite.modality}"):
            groups.setdefault(group, []).append(suite.name)
    means = {group: [found[name] for name in names if name in found] for group, names in groups.items()}
    return found | {group: fmean(values) for group, values in means.items() if values}


def _arm(runs: Runs) -> dict[str, Any]:
    ordered = [runs[seed] for seed in sorted(runs)]
    rows = [rows_of(run) for run in ordered]
    common = [name for name in rows[0] if all(name in each for each in rows)]
    return {
        "seeds": sorted(runs),
        "tokens": [run["tokens"] for run in ordered],
        "rows": {name: spread([each[name] for each in rows]) for name in common},
    }


def _gains(start: Runs, end: Runs) -> dict[str, dict[str, Any]]:
    """Row -> what each common seed has more at the end."""
    pairs = {seed: (rows_of(start[seed]), rows_of(end[seed])) for seed in sorted(set(start) & set(end))}
    names = list(next(iter(pairs.values()))[1]) if pairs else []
    return {
        name: over_seeds({seed: b[name] - a[name] for seed, (a, b) in pairs.items()})
        for name in names
        if all(name in a and name in b for a, b in pairs.values())
    }


def _rewards(arm: str, runs: Runs, events: Events) -> dict[str, list[float]]:
    """Seed -> mean reward of the first and of the last rounds; without seeds that have no rounds."""
    found = {}
    for seed in sorted(runs):
        values = [row["reward/mean"] for row in events.get(f"{STEP}-{arm}-{seed}", ()) if "reward/mean" in row]
        if values:
            part = min(END, max(1, len(values) // 3))
            found[str(seed)] = [fmean(values[:part]), fmean(values[-part:])]
    return found


def _suites(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    return {
        name: {"n": scores[0]["n"], "stderr": 100 * max(score["stderr"] for score in scores)}
        for name in SUITES
        if (scores := [result["scores"][name] for result in results if name in result["scores"]])
    }


def metrics(found: Mapping[str, Any]) -> dict[str, float]:
    """Means over seeds as MLflow metrics ``success/<arm>/<row>``, and ``gain/<arm>/<row>`` of ``gains``."""
    means = {
        f"success/{name}/{_word(row)}": float(cell["mean"])
        for name, arm in found["arms"].items()
        for row, cell in arm["rows"].items()
    }
    gains = {
        f"gain/{name}/{_word(row)}": float(cell["mean"])
        for name, rows in found["gains"].items()
        for row, cell in rows.items()
    }
    return means | gains


def _word(row: str) -> str:
    """A row's name as a part of a metric's name."""
    return row.replace(", ", "/").replace(" ", "_")
