"""The figures of an SFT ablation: its arms, side by side (source: ours).

Arms are compared with the checkpoint that they start from, and with each other seed by seed; all of them are asked the
same held-out tasks. Scores and rates are in points, 0 to 100. ``table`` puts the figures into words, ``page`` shows
them, ``claims`` judges by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.ablation.cells import without_result
from components.ablation.sft.arms import ARMS, BEFORE, NARROW, TEXT, TWINS, VISION
from components.ablation.spread import over_seeds, spread

MEASURES = {"success": "value", "tool_calls": "tool_calls"}
"""Figure of the comparison -> its key in a result's scores."""
TRAINED, UNTRAINED = "trained kinds", "untrained kinds"
GROUPS = (TRAINED, UNTRAINED)
"""Of the kinds of image programs: those that trajectories show, and those that none shows."""

Result = Mapping[str, Any]
Runs = Mapping[int, Result]


def compare(
    results: Sequence[Result], events: Mapping[str, Sequence[Mapping[str, float]]], cells: Sequence[str]
) -> dict[str, Any]:
    """The arms side by side.

    Args:
        results: ``extra["ablation"]`` of each finished arm and seed.
        events: not used; every ablation is given them.
        cells: those that the run should have.

    Returns:
        ``arms``: by name its seeds and tokens, and success and tool-call rate of each row (see ``rows_of``) with the
        standard deviation over seeds; ``no_result``: the cells without a result; ``gains``: by arm, row and measure,
        what each seed gained over the checkpoint before; ``differences``: the text arm minus the narrow one, likewise;
        ``untrained``: the kinds that no trajectory shows; ``runs``: the results as they came.
    """
    by_arm = {name: {r["seed"]: r for r in results if r["arm"] == name} for name in ARMS}
    present = {name: runs for name, runs in by_arm.items() if runs}
    before = next(iter(present.get(BEFORE, {}).values()), None)
    return {
        "arms": {name: _arm(runs) for name, runs in present.items()},
        "no_result": without_result(cells, results),
        "gains": {
            name: _gains({seed: before for seed in runs}, runs)
            for name, runs in present.items()
            if ARMS[name].trained and before is not None
        },
        "differences": _gains(present[NARROW], present[TEXT]) if {NARROW, TEXT} <= present.keys() else {},
        "untrained": sorted(results[0]["untrained"]),
        "runs": list(results),
    }


def rows_of(result: Result) -> dict[str, dict[str, float]]:
    """What an arm is measured on -> ``success``, ``tool_calls`` (points) and ``n`` (tasks).

    The rows are the suites, the two ``GROUPS`` of kinds of image programs, and ``kind/<name>`` for each kind.
    """
    found = {suite: _row([score]) for suite, score in result["scores"].items()}
    kinds = result["scores"].get(TWINS[0], {}).get("kinds", {})
    for group in GROUPS:
        if chosen := [score for kind, score in kinds.items() if (kind in result["untrained"]) == (group == UNTRAINED)]:
            found[group] = _row(chosen)
    return found | {f"kind/{kind}": _row([score]) for kind, score in kinds.items()}


def _row(scores: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over the tasks of all scores."""
    n = sum(score["n"] for score in scores)
    means = {name: 100 * sum(score[key] * score["n"] for score in scores) / n for name, key in MEASURES.items()}
    return {**means, "n": n}


def _arm(runs: Runs) -> dict[str, Any]:
    ordered = [runs[seed] for seed in sorted(runs)]
    rows = [rows_of(run) for run in ordered]
    common = [name for name in rows[0] if all(name in each for each in rows)]
    return {
        "seeds": sorted(runs),
        "tokens": [run["tokens"] for run in ordered],
        "rows": {
            name: {**{key: spread([each[name][key] for each in rows]) for key in MEASURES}, "n": rows[0][name]["n"]}
            for name in common
        },
    }


def _gains(start: Runs, end: Runs) -> dict[str, dict[str, dict[str, Any]]]:
    """Row -> measure -> ``seeds`` (seed -> end minus start, points), their mean and its 95% half width."""
    pairs = {seed: (rows_of(start[seed]), rows_of(end[seed])) for seed in sorted(set(start) & set(end))}
    names = list(next(iter(pairs.values()))[1]) if pairs else []
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in names:
        if any(name not in a or name not in b for a, b in pairs.values()):
            continue
        found[name] = {}
        for key in MEASURES:
            found[name][key] = over_seeds({seed: b[name][key] - a[name][key] for seed, (a, b) in pairs.items()})
    return found


def vision_rows(found: Mapping[str, Any]) -> list[str]:
    """The suites of what must not wear down that every arm was measured on."""
    arms = list(found["arms"].values())
    return [suite for suite in VISION if all(suite in arm["rows"] for arm in arms)]


def metrics(found: Mapping[str, Any]) -> dict[str, float]:
    """Means over seeds as MLflow metrics ``<measure>/<arm>/<row>``, and gains as ``gain/<measure>/<arm>/<row>``."""
    means = {
        f"{measure}/{name}/{row.replace(' ', '_')}": float(cell[measure]["mean"])
        for name, arm in found["arms"].items()
        for row, cell in arm["rows"].items()
        for measure in MEASURES
    }
    gains = {
        f"gain/{measure}/{name}/{row.replace(' ', '_')}": float(cell[measure]["mean"])
        for name, rows in found["gains"].items()
        for row, cell in rows.items()
        for measure in MEASURES
    }
    return means | gains
