"""The figures of a Toggle ablation: its arms, side by side (source: ours).

Arms are compared with the arm ``free``, seed by seed; all of them are asked the same held-out tasks. Accuracies are in
points, 0 to 100, lengths in tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.ablation.cells import without_result
from components.ablation.curves import Events
from components.ablation.spread import over_seeds, spread
from components.ablation.toggle.arms import ARMS, FAMILIES, FREE

STEP = "toggle_arm"
MEASURES = ("accuracy", "at_budget", "tokens")
"""Of each family: accuracy with the larger budget, with the smaller one, and the mean length of an answer."""

Result = Mapping[str, Any]
Runs = Mapping[int, Result]


def compare(results: Sequence[Result], events: Events, cells: Sequence[str]) -> dict[str, Any]:
    """The arms side by side.

    Args:
        results: ``extra["ablation"]`` of each finished arm and seed.
        events: not used; every ablation is given them.
        cells: those that the run should have.

    Returns:
        ``budget``: tokens of the smaller budget; ``arms``: by name its seeds, and by family each of ``MEASURES`` with
        the standard deviation over seeds; ``no_result``: the cells without a result; ``against_free``: by arm and
        family, ``saved`` (per cent of free's tokens) and the differences ``accuracy`` and ``at_budget``, of each seed,
        with their mean and its 95% half width; ``runs``: the results as they came.
    """
    by_arm = {name: {r["seed"]: r for r in results if r["arm"] == name} for name in ARMS}
    present = {name: runs for name, runs in by_arm.items() if runs}
    return {
        "budget": results[0]["budget"],
        "arms": {name: _arm(runs) for name, runs in present.items()},
        "no_result": without_result(cells, results),
        "against_free": {
            name: _against(present[FREE], runs)
            for name, runs in present.items()
            if ARMS[name].trained and name != FREE and FREE in present
        },
        "runs": list(results),
    }


def _arm(runs: Runs) -> dict[str, Any]:
    ordered = [runs[seed] for seed in sorted(runs)]
    return {
        "seeds": sorted(runs),
        "families": {
            family: {name: spread([run["answers"][family][name] for run in ordered]) for name in MEASURES}
            for family in FAMILIES
        },
    }


def _against(free: Runs, runs: Runs) -> dict[str, dict[str, Any]]:
    """Family -> figure -> of each common seed, what the runs have more than ``free``, or save of it."""
    seeds = sorted(set(free) & set(runs))
    found: dict[str, dict[str, Any]] = {}
    for family in FAMILIES if seeds else ():
        pairs = {seed: (free[seed]["answers"][family], runs[seed]["answers"][family]) for seed in seeds}
        found[family] = {
            "saved": over_seeds({seed: 100 * (1 - b["tokens"] / a["tokens"]) for seed, (a, b) in pairs.items()}),
            "accuracy": over_seeds({seed: b["accuracy"] - a["accuracy"] for seed, (a, b) in pairs.items()}),
            "at_budget": over_seeds({seed: b["at_budget"] - a["at_budget"] for seed, (a, b) in pairs.items()}),
        }
    return found


def metrics(found: Mapping[str, Any]) -> dict[str, float]:
    """Means over seeds as MLflow metrics ``<measure>/<arm>/<family>`` and ``against_free/<figure>/<arm>/<family>``."""
    means = {
        f"{measure}/{name}/{family}": float(cell["mean"])
        for name, arm in found["arms"].items()
        for family, row in arm["families"].items()
        for measure, cell in row.items()
    }
    differences = {
        f"against_free/{figure}/{name}/{family}": float(cell["mean"])
        for name, families in found["against_free"].items()
        for family, row in families.items()
        for figure, cell in row.items()
    }
    return means | differences
