"""The report: one self-contained HTML page about a run, with no script, font or picture from elsewhere.

This module computes what the page shows; ``report.html`` lays it out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from components.ablation import ablations
from components.finish import gallery
from components.runtime.pages import template
from components.runtime.pages.charts import Points, line_chart
from components.runtime.pages.numbers import duration, figure
from components.runtime.steps import IMPORTED, STARTS
from model.data.samples.sample import ABILITIES, MODALITIES

Row = Mapping[str, Any]
Event = Mapping[str, Any]

STAGE_LABELS = {
    **STARTS, "vit_pretrain": "ViT", "joint_pretrain": "joint", "mid_train": "mid-train",
    "zero_vision_sft": "zero-vision SFT", "visual_rl": "visual RL", "rejection_sft": "rejection SFT",
    "joint_rl": "joint RL", "parl": "PARL",
}  # fmt: skip
SIGMAS = 2.0  # a difference counts when it exceeds two standard errors of itself (ours)
_PAGE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class Cell:
    """A score in a table and how it compares with the one before it.

    Attributes:
        mark: CSS classes: " lower" or " worse lower" after a fall of more than one or two standard errors.
    """

    value: float
    stderr: float
    mark: str

    @property
    def shade(self) -> float:
        """The depth of the cell's colour, 0 to 1."""
        return min(max(self.value, 0.0), 1.0)


@dataclass(frozen=True)
class ScoreRow:
    """One row of a table of scores; ``cells`` by stage, ``None`` where nothing was measured.

    Attributes:
        chance: the score of the best constant answer, if known.
        learned: whether the last cell is above the first and above chance; None if there are no two cells to compare.
    """

    name: str
    kind: str
    chance: float | None
    cells: Sequence[Cell | None]
    learned: bool | None = None


@dataclass(frozen=True)
class Chart:
    title: str
    note: str
    drawing: Markup


def render(summary: Mapping[str, Any], events: Mapping[str, Sequence[Event]], extra: Mapping[str, Any]) -> str:
    """The report of one run; for an ablation, the page that compares its arms.

    Args:
        summary: the content of ``summary.json``.
        events: step -> rows of its ``metrics.jsonl``: ``{"step": int, "time": seconds, "loss/text": ..., ...}``.
        extra: any of ``run_id``, ``profile``, ``error`` (why the run ended early), ``warnings``, ``evaluate`` and
            ``serve`` (the ``extra`` of those steps' manifests), and ``gallery`` (the evaluation's ``gallery.json``).
            What is missing is left out of the page.

    Returns:
        The page's text.
    """
    if "ablation" in summary:
        return ablations.of(summary["ablation"]).render(summary["ablation"], events, extra)
    rows = list(summary.get("evals") or ())
    steps = list(summary.get("steps") or ())
    evaluation = extra.get("evaluate") or {}
    chance = {suite: float(value) for suite, value in (evaluation.get("chance") or {}).items()}
    return template.render(
        _PAGE,
        title=extra.get("run_id", "run"),
        run_id=extra.get("run_id", "run"),
        verdict=_verdict(summary, extra),
        facts=_facts(summary, extra),
        reasons=_reasons(extra),
        served=_served(extra.get("serve") or {}),
        stages=[_label(stage) for stage in _stages(rows)],
        matrix=_matrix(rows, chance),
        rl=_what_rl_did(events),
        suites=_suites(rows, chance),
        kinds=_kinds(rows, evaluation.get("kinds") or ()),
        gallery=gallery.folders(extra.get("gallery") or {}, _label),
        own=_own(rows, evaluation.get("own_losses") or {}),
        curves=_curves(events),
        swarm_rows=_swarm_rows(rows, evaluation.get("swarm") or {}),
        swarm_curves=_swarm_curves(events.get("parl") or ()),
        seconds=[(_words(step["name"]), float(step.get("seconds") or 0.0)) for step in steps],
        speed=[(_words(step["name"]), float(step["tokens_per_s"])) for step in steps if step.get("tokens_per_s")],
        versions=sorted((summary.get("versions") or {}).items()),
    )


def _verdict(summary: Mapping[str, Any], extra: Mapping[str, Any]) -> str:
    if summary.get("promoted"):
        return "promoted"
    if extra.get("error"):
        return "failed"
    decision = str((extra.get("evaluate") or {}).get("decision"))
    # Where the gate lets a model through and nothing is promoted, the pipeline has no promotion.
    return {"hold": "held back", "promote": "passed"}.get(decision, "not promoted")


def _facts(summary: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    promoted = summary.get("promoted") or {}
    return {
        "Run time": duration(float(summary.get("seconds") or 0.0)),
        "Profile": extra.get("profile"),
        "Started from": ((extra.get(IMPORTED) or {}).get("origin") or {}).get("source"),
        "Version": promoted.get("version"),
        "Commit": str(promoted.get("commit") or "")[:10],
        "Manifest": str(promoted.get("manifest_sha256") or "")[:10],
    }


def _reasons(extra: Mapping[str, Any]) -> list[str]:
    """Why the run ended as it did: its error, the gate's reasons, warnings."""
    error = [extra["error"]] if extra.get("error") else []
    return [*error, *((extra.get("evaluate") or {}).get("reasons") or ()), *(extra.get("warnings") or ())]


def _served(serve: Mapping[str, Any]) -> dict[str, Any] | None:
    """The question that the served model was asked, and its answer; None if it was not asked."""
    if "answer" not in serve:
        return None
    answer, expected = str(serve["answer"]), str(serve.get("expected"))
    image = str(serve.get("image", ""))
    return {
        "question": serve.get("question", ""),
        "answer": answer,
        "expected": expected,
        "right": answer.strip() == expected.strip(),
        "image": image if image.startswith("data:image/") else "",
        "endpoint_checked": serve.get("endpoint_checked"),
    }


def _matrix(rows: Sequence[Row], chance: Mapping[str, float]) -> list[ScoreRow]:
    """Ability and modality by stage: means over the suites of a cell."""
    found = []
    for ability in ABILITIES:
        for modality in MODALITIES:
            chosen = [row for row in rows if (row["ability"], row["modality"]) == (ability, modality)]
            if not chosen:
                continue
            suites = sorted({row["suite"] for row in chosen})
            means = [_mean([row for row in chosen if row["step"] == stage]) for stage in _stages(rows)]
            levels = [chance[suite] for suite in suites if suite in chance]
            level = sum(levels) / len(levels) if levels else None
            found.append(ScoreRow(ability, modality, level, _cells(means)))
    return found


def _what_rl_did(events: Mapping[str, Sequence[Event]]) -> list[tuple[str, str, str]]:
    """(a part of RL, what is told of it, its figures), for the parts of which something was logged."""
    found = [
        ("RL on images", "mean reward of a round's episodes", _change(events.get("visual_rl") or (), "reward/mean")),
        ("RFT, fine-tuning on its successes", "right episodes", _lessons(events.get("rejection_sft") or ())),
        (
            "Toggle, length budgets in joint RL",
            "mean tokens that the model wrote in an episode",
            _change(events.get("joint_rl") or (), "tokens/response"),
        ),
    ]
    return [row for row in found if row[-1]]


def _change(rounds: Sequence[Event], name: str) -> str:
    """A metric in the first and in the last round that have it."""
    seen = [row for row in rounds if math.isfinite(row.get(name, math.nan))]
    told = [f"{figure(row[name])} in round {row['step']:.0f}" for row in (*seen[:1], *seen[1:][-1:])]
    return " → ".join(told)


def _lessons(rows: Sequence[Event]) -> str:
    """How many successes were kept, and how many were short enough to be learned from."""
    told = next((row for row in rows if "successes/kept" in row), None)
    if told is None:
        return ""
    kept, used = int(told["successes/kept"]), int(told["successes/used"])
    if not kept:
        return "no success was kept, so nothing was trained"
    return f"{kept} kept, {used} used" if used else f"{kept} kept, none of which fits into a row: nothing was trained"


def _suites(rows: Sequence[Row], chance: Mapping[str, float]) -> list[ScoreRow]:
    scores = {(row["suite"], row["step"]): (float(row["value"]), float(row["stderr"])) for row in rows}
    order = {name: n for n, name in enumerate([*ABILITIES, *MODALITIES])}
    kinds = {row["suite"]: (row["ability"], row["modality"]) for row in rows}
    found = []
    for suite in sorted(kinds, key=lambda name: ([order.get(part, 99) for part in kinds[name]], name)):
        cells = _cells([scores.get((suite, stage)) for stage in _stages(rows)])
        level = chance.get(suite)
        found.append(ScoreRow(_words(suite), " · ".join(kinds[suite]), level, cells, _learned(cells, level or 0.0)))
    return found


def _cells(scores: Iterable[tuple[float, float] | None]) -> list[Cell | None]:
    """The cells of one row from (value, standard error); the last score before a cell decides whether it fell."""
    cells: list[Cell | None] = []
    before: Cell | None = None
    for score in scores:
        if score is None:
            cells.append(None)
            continue
        value, stderr = score
        drop = before.value - value if before is not None else 0.0
        error = math.hypot(stderr, before.stderr) if before is not None else 0.0
        before = Cell(value, stderr, " worse lower" if drop > SIGMAS * error else " lower" if drop > error else "")
        cells.append(before)
    return cells


def _learned(cells: Sequence[Cell | None], chance: float) -> bool | None:
    known = [cell for cell in cells if cell is not None]
    if len(known) < 2 or cells[0] is None:
        return None
    first, last = cells[0], known[-1]
    gained = last.value - first.value > SIGMAS * math.hypot(last.stderr, first.stderr)
    return gained and last.value - chance > SIGMAS * last.stderr


def _curves(events: Mapping[str, Sequence[Event]]) -> list[Chart]:
    charts = []
    for step in _in_order(events):
        for word, label in (("loss", "loss (nats)"), ("reward", "reward")):
            series = _series(events[step], rf"{word}(/.*)?")
            if drawing := line_chart(series, x_label="optimizer step", y_label=label):
                last = ", ".join(f"{name} {figure(points[-1][1])}" for name, points in list(series.items())[:2])
                charts.append(Chart(f"{_label(step)}: {word}", last, drawing))
    return charts


def _swarm_curves(parl: Sequence[Event]) -> list[Chart]:
    charts = []
    units = {
        "parallelism": "sub-agents at once", "critical_steps": "critical steps", "f1": "reward by number of parts",
        "delegation": "share of episodes that delegate",
    }  # fmt: skip
    for word, unit in units.items():
        series = _series(parl, rf"(.*/)?{word}(/.*)?")
        if drawing := line_chart(series, x_label="optimizer step", y_label=unit):
            charts.append(Chart(f"PARL: {_words(word)}", unit, drawing))
    return charts


def _own(rows: Sequence[Row], losses: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """The user's sources with the loss on what was held out of them, by stage."""
    stages = _stages(rows)
    names = sorted({name for found in losses.values() for name in found})
    cells = {name: [losses.get(stage, {}).get(name) for stage in stages] for name in names}
    return [{"name": name, "cells": ["–" if v is None else f"{v:.2f}" for v in cells[name]]} for name in names]


def _kinds(rows: Sequence[Row], kinds: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Suite of image programs -> its kinds, each with its figures by stage."""
    found = {(row["suite"], row["kind"], row["step"]): row for row in kinds}
    suites: dict[str, list[dict[str, Any]]] = {}
    for suite, kind in sorted({(row["suite"], row["kind"]) for row in kinds}):
        cells = [found.get((suite, kind, stage)) for stage in _stages(rows)]
        suites.setdefault(_words(suite), []).append({"kind": _words(kind), "cells": cells})
    return suites


def _swarm_rows(rows: Sequence[Row], figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Wide search alone and with sub-agents, by stage: F1 and steps of each, parallelism, and how many fewer steps."""
    f1 = {(row["step"], row["suite"]): row for row in rows}
    found = []
    for step in _stages(rows):
        modes = figures.get(step) or {}
        single, swarm = modes.get("wide_search_single"), modes.get("wide_search_swarm")
        if not single or not swarm:
            continue
        cells = []
        for suite, mode in (("wide_search_single", single), ("wide_search_swarm", swarm)):
            row = f1.get((step, suite))
            cells += [f"{row['value']:.2f}" if row else "–", figure(mode["critical_steps"])]
        ratio = single["critical_steps"] / swarm["critical_steps"] if swarm["critical_steps"] else math.nan
        cells += [figure(swarm["parallelism"]), f"{ratio:.2f}×" if math.isfinite(ratio) else "–"]
        found.append({"name": _label(step), "cells": cells})
    return found


def _series(rows: Iterable[Event], pattern: str) -> dict[str, Points]:
    """Metrics whose whole name matches ``pattern``, as points; names lose their common prefix."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if re.fullmatch(pattern, name) and isinstance(value, int | float) and math.isfinite(value):
                series.setdefault(_words(name.split("/", 1)[-1]), []).append((float(row["step"]), float(value)))
    return {name: sorted(points) for name, points in sorted(series.items())}


def _mean(rows: Sequence[Row]) -> tuple[float, float] | None:
    """Mean over suites and its standard error, or None without rows."""
    if not rows:
        return None
    return sum(r["value"] for r in rows) / len(rows), math.hypot(*(r["stderr"] for r in rows)) / len(rows)


def _in_order(steps: Iterable[str]) -> list[str]:
    known = list(STAGE_LABELS)
    return sorted(steps, key=lambda step: (known.index(step) if step in known else len(known), step))


def _stages(rows: Sequence[Row]) -> list[str]:
    return _in_order({row["step"] for row in rows})


def _label(stage: str) -> str:
    return STAGE_LABELS.get(stage, _words(stage))


def _words(name: str) -> str:
    return name.replace("_", " ")
