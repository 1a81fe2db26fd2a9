"""The figures of a fusion ablation: its arms, side by side (source: ours).

Arms differ in when vision begins; each ran with several seeds. A seed gives all arms the same first weights and
samples, so differences between arms are taken seed by seed. ``table`` puts the figures into words, ``page`` draws them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from components.ablation.cells import without_result
from components.ablation.claim import too_few
from components.ablation.fusion.arms import ARMS, COLUMNS, Arm
from components.ablation.spread import half_width, spread

STEP = "fusion_arm"
MEASURES = {"score": "score, 0 to 100, higher is better", "loss": "held-out loss, nats a token, lower is better"}
Event = Mapping[str, float]


def compare(
    results: Sequence[Mapping[str, Any]], events: Mapping[str, Sequence[Event]], cells: Sequence[str]
) -> dict[str, Any]:
    """The arms side by side.

    Args:
        results: ``extra["ablation"]`` of each finished arm and seed.
        events: task name -> rows of its ``metrics.jsonl``.
        cells: those that the run should have.

    Returns:
        ``arms``: by name its schedule, seeds, tokens, and each column's score (0 to 100) and loss with the standard
        deviation over seeds; ``no_result``: the cells without a result; ``differences``: early minus each other arm,
        column by column; ``dips``: what the text loss did when vision began; ``runs``: the results as they came.
    """
    by_arm = {name: {r["seed"]: r for r in results if r["arm"] == name} for name in ARMS}
    present = {name: by_arm[name] for name in ARMS if by_arm[name]}
    return {
        "arms": {name: _arm(ARMS[name], runs) for name, runs in present.items()},
        "no_result": without_result(cells, results),
        "differences": {
            name: _differences(present["early"], runs)
            for name, runs in present.items()
            if name != "early" and "early" in present
        },
        "dips": {
            name: [
                _dip(ARMS[name], seed, events.get(f"{STEP}-{name}-{seed}", ())) for seed in sorted(runs)
            ]
            for name, runs in present.items()
            if ARMS[name].vision_start > 0
        },
        "runs": list(results),
    }  # fmt: skip


def _arm(arm: Arm, runs: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    ordered = [runs[seed] for seed in sorted(runs)]
    return {
        "vision_start": arm.vision_start,
        "ratio": arm.ratio,
        "seeds": sorted(runs),
        "tokens": {kind: [run["tokens"][kind] for run in ordered] for kind in ("vision", "text")},
        "columns": {
            column.name: {
                "score": spread([100 * run["columns"][column.name]["score"] for run in ordered]),
                "loss": spread([run["columns"][column.name]["loss"] for run in ordered]),
                "paper": arm.paper[column.name],
                "chance": 100 * fmean(run["columns"][column.name]["chance"] for run in ordered),
            }
            for column in COLUMNS
        },
        "bits_per_byte": {
            name: spread([run["bits_per_byte"][name] for run in ordered]) for name in ordered[0]["bits_per_byte"]
        },
    }


def _differences(early: Mapping[int, Mapping[str, Any]], other: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Early minus the other arm over ``n`` seeds, with the half width of the mean's 95% interval (Student's t)."""
    seeds = sorted(set(early) & set(other))
    found: dict[str, Any] = {}
    for column in COLUMNS:
        found[column.name] = {}
        for measure, scale in (("score", 100), ("loss", 1)):
            values = [
                scale * (early[seed]["columns"][column.name][measure] - other[seed]["columns"][column.name][measure])
                for seed in seeds
            ]
            mean = fmean(values) if values else None
            found[column.name][measure] = {"mean": mean, "half": half_width(values), "n": len(values)}
    return found


def _dip(arm: Arm, seed: int, rows: Sequence[Event]) -> dict[str, Any]:
    """How the held-out text loss changed when vision began.

    ``before``: the last loss measured before vision began, nats. ``rise``: the largest loss after that, minus
    ``before``; above 0, the model dipped. ``recovered``: share of the training after which the loss was back at
    ``before``, None if it never was. ``final``: the last loss measured.
    """
    points = [(row["step"], row["held_out/text"]) for row in rows if "held_out/text" in row]
    if not points:
        return {"seed": seed, "before": None, "rise": None, "recovered": None, "final": None}
    end = max(step for step, _ in points)
    before = [value for step, value in points if step <= arm.vision_start * end][-1]
    after = [(step, value) for step, value in points if step > arm.vision_start * end]
    worst_step, worst = max(after, key=lambda point: point[1])
    back = [step / end for step, value in after if step > worst_step and value <= before]
    recovered = (back[0] if back else None) if worst > before else arm.vision_start
    return {"seed": seed, "before": before, "rise": worst - before, "recovered": recovered, "final": points[-1][1]}


def verdict(difference: Mapping[str, Any], measure: str) -> str:
    """What a difference says: early is better, early is worse, within noise, or that its seeds are too few."""
    mean, half = difference["mean"], difference["half"]
    if few := too_few(difference["n"]):
        return few
    if abs(mean) <= half or mean == 0:
        return "within noise"
    return "early is better" if (mean > 0) == (measure == "score") else "early is worse"


def chance(found: Mapping[str, Any]) -> list[float]:
    """The score of the best constant answer in each column, 0 to 100; all arms were asked the same tasks."""
    arm = next(iter(found["arms"].values()))
    return [arm["columns"][column.name]["chance"] for column in COLUMNS]


def metrics(found: Mapping[str, Any]) -> dict[str, float]:
    """The means over seeds, as MLflow metrics ``score/<arm>/<column>`` and ``loss/<arm>/<column>``."""
    return {
        f"{measure}/{name}/{column}": float(cell[measure]["mean"])
        for name, arm in found["arms"].items()
        for column, cell in arm["columns"].items()
        for measure in MEASURES
    }
