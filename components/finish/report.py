"""One self-contained HTML page about a run: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from components.finish.style import CSS
from components.runtime.charts import bar_rows, duration, figure, line_chart
from model.data.sample import ABILITIES, MODALITIES

Row = Mapping[str, Any]
Event = Mapping[str, Any]

UNTRAINED = "init"
STAGE_LABELS = {
    "init": "untrained", "vit_pretrain": "ViT", "joint_pretrain": "joint", "mid_train": "mid-train",
    "zero_vision_sft": "zero-vision SFT", "joint_rl": "joint RL", "parl": "PARL",
}  # fmt: skip
SIGMAS = 2.0  # a difference counts when it exceeds two standard errors of itself (ours)


def render(summary: Mapping[str, Any], events: Mapping[str, Sequence[Event]], extra: Mapping[str, Any]) -> str:
    """The report of one run.

    Args:
        summary: the content of ``summary.json``.
        events: step -> rows of its ``metrics.jsonl``: ``{"step": int, "time": seconds, "loss/text": ..., ...}``.
        extra: any of ``run_id``, ``profile``, ``error`` (why the run ended early), ``warnings``, ``evaluate`` and
            ``serve`` (the ``extra`` of those steps' manifests). What is missing is left out of the page.

    Returns:
        The page's text.
    """
    rows = list(summary.get("evals") or ())
    evaluation = extra.get("evaluate") or {}
    chance = {suite: float(value) for suite, value in (evaluation.get("chance") or {}).items()}
    sections = [
        _header(summary, extra),
        _matrix(rows, chance),
        _suites(rows, chance),
        _curves(events),
        _swarm(rows, evaluation, events.get("parl") or ()),
        _time(summary),
        _versions(summary),
    ]
    title = escape(f"moonflow · {extra.get('run_id', 'run')}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{title}</title><style>{CSS}</style></head><body><main>\n'
        + "\n".join(section for section in sections if section)
        + "\n</main></body></html>\n"
    )


def _header(summary: Mapping[str, Any], extra: Mapping[str, Any]) -> str:
    promoted = summary.get("promoted") or {}
    evaluation = extra.get("evaluate") or {}
    if promoted:
        verdict, tone = "promoted", "good"
    elif extra.get("error"):
        verdict, tone = "failed", "bad"
    else:
        verdict, tone = ("held back" if evaluation.get("decision") == "hold" else "not promoted"), "bad"
    facts = {"Run time": duration(float(summary.get("seconds") or 0.0)), "Profile": extra.get("profile"),
             "Version": promoted.get("version"), "Commit": str(promoted.get("commit") or "")[:10],
             "Manifest": str(promoted.get("manifest_sha256") or "")[:10]}  # fmt: skip
    cells = "".join(f"<div><dt>{k}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items() if v)
    reasons = [str(reason) for reason in evaluation.get("reasons") or ()]
    if extra.get("error"):
        reasons.insert(0, str(extra["error"]))
    reasons += map(str, extra.get("warnings") or ())
    return (
        f'<div class="brand">moonflow</div><h1>{escape(str(extra.get("run_id", "run")))} <span class="verdict {tone}">'
        f'{verdict}</span></h1><dl class="facts">{cells}</dl>{_reasons(reasons)}{_served(extra.get("serve") or {})}'
    )


def _reasons(reasons: Sequence[str]) -> str:
    return '<ul class="reasons quiet">' + "".join(f"<li>{escape(r)}</li>" for r in reasons) + "</ul>" if reasons else ""


def _served(serve: Mapping[str, Any]) -> str:
    if "answer" not in serve:
        return ""
    right = str(serve["answer"]).strip() == str(serve.get("expected")).strip()
    picture = str(serve.get("image", ""))
    shown = f'<img alt="the picture asked about" src="{escape(picture)}">' if picture.startswith("data:image/") else ""
    mark = (
        '<span class="yes">right</span>'
        if right
        else f'<span class="no">expected {escape(str(serve.get("expected")))}</span>'
    )
    asked = "Asked over HTTP, " + ("at the synced endpoint" if serve.get("endpoint_checked") else "in the serve task")
    return (
        f'<div class="card served">{shown}<dl><dt>{asked}</dt><dd>{escape(str(serve.get("question", "")))}</dd>'
        f"<dt>Served model</dt><dd>{escape(str(serve['answer']))} &nbsp;{mark}</dd></dl></div>"
    )


def _matrix(rows: Sequence[Row], chance: Mapping[str, float]) -> str:
    """Ability x modality by stage: means over the suites of a cell."""
    stages = _stages(rows)
    body = []
    for ability in ABILITIES:
        for modality in MODALITIES:
            cell = [row for row in rows if (row["ability"], row["modality"]) == (ability, modality)]
            if not cell:
                continue
            suites = sorted({row["suite"] for row in cell})
            by_stage = {stage: _mean([row for row in cell if row["step"] == stage]) for stage in stages}
            levels = [chance[suite] for suite in suites if suite in chance]
            body.append(
                f'<tr class="final"><th class="row" scope="row">{ability}<small>{modality}</small></th>'
                + _level(sum(levels) / len(levels) if levels else None)
                + _cells([by_stage[stage] for stage in stages]) + "</tr>"
            )  # fmt: skip
    if not body:
        return ""
    return (
        '<h2>What each stage taught</h2><p class="quiet">Held-out score from 0 to 1 by ability and modality, &plusmn; '
        "one standard error. &#9660; marks a fall below the stage before by more than one standard error of the "
        "difference, an outline one by more than two. Chance is "
        f"the score of the best constant answer.</p>{_table(stages, body)}"
    )


def _suites(rows: Sequence[Row], chance: Mapping[str, float]) -> str:
    stages = _stages(rows)
    index = {(row["suite"], row["step"]): (float(row["value"]), float(row["stderr"])) for row in rows}
    order = {name: n for n, name in enumerate([*ABILITIES, *MODALITIES])}
    suites = {row["suite"]: (row["ability"], row["modality"]) for row in rows}
    body = []
    for suite in sorted(suites, key=lambda name: ([order.get(part, 99) for part in suites[name]], name)):
        cells = [index.get((suite, stage)) for stage in stages]
        body.append(
            f'<tr class="final"><th class="row" scope="row">{_words(suite)}'
            f"<small>{' · '.join(suites[suite])}</small></th>"
            + _level(chance.get(suite)) + _cells(cells) + _above(cells, chance.get(suite)) + "</tr>"
        )  # fmt: skip
    if not body:
        return ""
    note = "Before and after every stage. The last column says whether the final model is above both chance and the " \
           "untrained model by two standard errors."  # fmt: skip
    return f'<h2>Every suite</h2><p class="quiet">{note}</p>{_table(stages, body, "learned")}'


def _table(stages: Sequence[str], body: Sequence[str], last: str = "") -> str:
    names = ["chance", *(STAGE_LABELS.get(stage, _words(stage)) for stage in stages), *([last] if last else [])]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    table = f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="card scroll">{table}</div>'


def _cells(cells: Sequence[tuple[float, float] | None]) -> str:
    """Heat cells of one line; the one before, where there is one, decides whether a cell is worse."""
    parts = []
    before: tuple[float, float] | None = None
    for cell in cells:
        if cell is None:
            parts.append('<td class="plain">&ndash;</td>')
            continue
        value, stderr = cell
        drop = before[0] - value if before is not None else 0.0
        error = math.hypot(stderr, before[1]) if before is not None else 0.0
        mark = " worse lower" if drop > SIGMAS * error else " lower" if drop > error else ""
        parts.append(f'<td class="heat{mark}" style="--v:{min(max(value, 0), 1):.3f}">'
                     f"{_score(value)}<small>&plusmn;{_score(stderr)}</small></td>")  # fmt: skip
        before = cell
    return "".join(parts)


def _level(level: float | None) -> str:
    return '<td class="plain">' + ("&ndash;" if level is None else _score(level)) + "</td>"


def _above(cells: Sequence[tuple[float, float] | None], level: float | None) -> str:
    known = [cell for cell in cells if cell is not None]
    if len(known) < 2 or cells[0] is None:
        return '<td class="plain">&ndash;</td>'
    (first, first_error), (value, error) = cells[0], known[-1]
    learned = value - first > SIGMAS * math.hypot(error, first_error) and value - (level or 0.0) > SIGMAS * error
    return f'<td class="{"yes" if learned else "no"}">{"yes" if learned else "no"}</td>'


def _curves(events: Mapping[str, Sequence[Event]]) -> str:
    cards = []
    for step in _in_order(events):
        rows = events[step]
        for word, label, pattern in (("loss", "loss (nats)", r"loss(/.*)?"), ("reward", "reward", r"reward(/.*)?")):
            series = _series(rows, pattern)
            if chart := line_chart(series, x_label="optimizer step", y_label=label):
                title = f"{STAGE_LABELS.get(step, _words(step))}: {word}"
                last = ", ".join(f"{name} {figure(points[-1][1])}" for name, points in list(series.items())[:2])
                cards.append(_card(title, last, chart))
    if not cards:
        return ""
    note = "Thin: every logged step. Bold: moving average."
    return f'<h2>Loss and reward</h2><p class="quiet">{note}</p><div class="grid2">{"".join(cards)}</div>'


def _swarm(rows: Sequence[Row], evaluation: Mapping[str, Any], parl: Sequence[Event]) -> str:
    cards = []
    for word, unit in (("parallelism", "sub-agents at once"), ("critical_steps", "critical steps")):
        series = _series(parl, rf"(.*/)?{word}(/.*)?")
        if chart := line_chart(series, x_label="optimizer step", y_label=unit):
            cards.append(_card(f"PARL: {_words(word)}", unit, chart))
    table = _swarm_table(rows, evaluation.get("swarm") or {})
    if not cards and not table:
        return ""
    note = (
        "Critical steps: one for every orchestrator turn plus the longest sub-agent it waited for, so spawning pays "
        "only when it shortens the way to the answer."
    )
    curves = f'<div class="grid2">{"".join(cards)}</div>' if cards else ""
    return f'<h2>Agent swarm</h2><p class="quiet">{note}</p>{table}{curves}'


def _swarm_table(rows: Sequence[Row], figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    f1 = {(row["step"], row["suite"]): row for row in rows}
    body = []
    for step in _stages(rows):
        modes = figures.get(step) or {}
        single, swarm = modes.get("wide_search_single"), modes.get("wide_search_swarm")
        if not single or not swarm:
            continue
        cells = []
        for suite, mode in (("wide_search_single", single), ("wide_search_swarm", swarm)):
            row = f1.get((step, suite))
            cells += [_score(row["value"]) if row else "&ndash;", figure(mode["critical_steps"])]
        ratio = single["critical_steps"] / swarm["critical_steps"] if swarm["critical_steps"] else math.nan
        cells += [figure(swarm["parallelism"]), f"{ratio:.2f}&times;" if math.isfinite(ratio) else "&ndash;"]
        body.append(f'<tr><th class="row" scope="row">{STAGE_LABELS.get(step, _words(step))}</th>'
                    + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")  # fmt: skip
    if not body:
        return ""
    names = ("serial F1", "serial steps", "swarm F1", "swarm critical steps", "swarm parallelism", "fewer steps")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    table = f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
    return f'<div class="card scroll" style="margin-bottom:16px"><table class="lines">{table}</table></div>'


def _time(summary: Mapping[str, Any]) -> str:
    steps = summary.get("steps") or ()
    if not steps:
        return ""
    seconds = [(_words(step["name"]), float(step.get("seconds") or 0.0)) for step in steps]
    speed = [(_words(step["name"]), float(step["tokens_per_s"])) for step in steps if step.get("tokens_per_s")]
    cards = _card("Seconds by step", duration(sum(value for _, value in seconds)), bar_rows(seconds, "s"))
    if speed:
        cards += _card("Tokens a second", "", bar_rows(speed, "tok/s"))
    return f'<h2>Where the time went</h2><div class="grid2" style="margin-top:12px">{cards}</div>'


def _versions(summary: Mapping[str, Any]) -> str:
    pairs = "".join(f"<div><dt>{escape(str(name))}</dt><dd>{escape(str(version))}</dd></div>"
                    for name, version in sorted((summary.get("versions") or {}).items()))  # fmt: skip
    return f'<h2>Versions</h2><dl class="card versions" style="margin-top:12px">{pairs}</dl>' if pairs else ""


def _card(title: str, note: str, body: str) -> str:
    head = f'<div class="charthead"><h3>{escape(title)}</h3><span>{escape(note)}</span></div>'
    return f'<div class="card">{head}{body}</div>'


def _series(rows: Iterable[Event], pattern: str) -> dict[str, list[tuple[float, float]]]:
    """Metrics whose whole name matches ``pattern``, as points; names lose their common prefix."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if re.fullmatch(pattern, name) and isinstance(value, int | float) and math.isfinite(value):
                series.setdefault(name.split("/", 1)[-1].replace("_", " "), []).append(
                    (float(row["step"]), float(value))
                )
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


def _words(name: str) -> str:
    return escape(name.replace("_", " "))


def _score(value: float) -> str:
    return f"{value:.2f}"
