"""The end of a fusion ablation: what its arms say together, as figures, as a Markdown table and as a page (ours).

Arms differ in when vision begins; each ran with several seeds. A seed gives all arms the same first weights and
samples, so differences between arms are taken seed by seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean, stdev
from typing import Any

from components.finish.style import CSS
from components.fusion_arm.arms import ARMS, COLUMNS, Arm
from components.runtime.charts import Points, line_chart

STEP = "fusion_arm"
CONFIDENCE = 0.95
MEASURES = {"score": "score, 0 to 100, higher is better", "loss": "held-out loss, nats a token, lower is better"}
Event = Mapping[str, float]


def compare(results: Sequence[Mapping[str, Any]], events: Mapping[str, Sequence[Event]]) -> dict[str, Any]:
    """The arms side by side.

    Args:
        results: ``extra["ablation"]`` of each finished arm and seed.
        events: task name -> rows of its ``metrics.jsonl``.

    Returns:
        ``arms``: by name its schedule, seeds, tokens, and each column's score (0 to 100) and loss with the standard
        deviation over seeds; ``differences``: early minus each other arm, column by column; ``dips``: what the text
        loss did when vision began; ``runs``: the results as they came.
    """
    by_arm = {name: {r["seed"]: r for r in results if r["arm"] == name} for name in ARMS}
    present = {name: by_arm[name] for name in ARMS if by_arm[name]}
    return {
        "arms": {name: _arm(ARMS[name], runs) for name, runs in present.items()},
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
                "score": _spread([100 * run["columns"][column.name]["score"] for run in ordered]),
                "loss": _spread([run["columns"][column.name]["loss"] for run in ordered]),
                "paper": arm.paper[column.name],
                "chance": 100 * fmean(run["columns"][column.name]["chance"] for run in ordered),
            }
            for column in COLUMNS
        },
        "bits_per_byte": {
            name: _spread([run["bits_per_byte"][name] for run in ordered]) for name in ordered[0]["bits_per_byte"]
        },
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation (None for one value)."""
    return {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None, "n": len(values)}


def _differences(early: Mapping[int, Mapping[str, Any]], other: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Early minus the other arm, seed by seed, with the half width of the mean's 95% interval (Student's t)."""
    seeds = sorted(set(early) & set(other))
    found: dict[str, Any] = {}
    for column in COLUMNS:
        found[column.name] = {}
        for measure, scale in (("score", 100), ("loss", 1)):
            values = [
                scale * (early[seed]["columns"][column.name][measure] - other[seed]["columns"][column.name][measure])
                for seed in seeds
            ]
            found[column.name][measure] = {"mean": fmean(values) if values else None, "half": half_width(values)}
    return found


def half_width(values: Sequence[float]) -> float | None:
    """Of the mean's 95% confidence interval; None for fewer than two values."""
    from scipy.stats import t  # type: ignore[import-untyped]

    n = len(values)
    return float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * stdev(values) / math.sqrt(n) if n > 1 else None


def _dip(arm: Arm, seed: int, rows: Sequence[Event]) -> dict[str, Any]:
    """What the held-out text loss did from the last look before vision began.

    ``rise``: the largest loss after it minus the loss before, nats; above 0 it dipped. ``recovered``: share of the
    training after which the loss was back at its value before, None if it never was.
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


def markdown(found: Mapping[str, Any]) -> str:
    """Our table beside the paper's, as Markdown."""
    lines = []
    for measure, meaning in MEASURES.items():
        lines += [f"**{meaning[0].upper()}{meaning[1:]}**; ± is the standard deviation over seeds.", ""]
        head = ["arm", "vision from", "vision : text", *(column.name for column in COLUMNS)]
        lines += [_row(head), _row(["---"] * len(head))]
        for name, arm in found["arms"].items():
            cells = [_value(arm["columns"][column.name][measure], measure) for column in COLUMNS]
            lines.append(_row([f"{name}, ours", f"{arm['vision_start']:.0%}", arm["ratio"], *cells]))
            if measure == "score":
                paper = [f"{arm['columns'][column.name]['paper']:.1f}" for column in COLUMNS]
                lines.append(_row([f"{name}, K2.5 Table 1", f"{arm['vision_start']:.0%}", arm["ratio"], *paper]))
        if measure == "score":
            lines.append(_row(["best constant answer", "", "", *(f"{value:.1f}" for value in _chance(found))]))
        for name, columns in found["differences"].items():
            cells = [_difference(columns[column.name][measure], measure) for column in COLUMNS]
            lines.append(_row([f"early minus {name}, ours (95%)", "", "", *cells]))
            if measure == "score":
                gaps = [f"{ARMS['early'].paper[c.name] - ARMS[name].paper[c.name]:+.1f}" for c in COLUMNS]
                lines.append(_row([f"early minus {name}, K2.5", "", "", *gaps]))
        lines.append("")
    lines += [f"- {line}" for line in sentences(found)]
    return "\n".join(lines) + "\n"


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What stands for which column, what every arm was given, and what came out, one line each."""
    lines = [f"{c.name}: score of {', '.join(c.suites)}; loss of {', '.join(c.families)}" for c in COLUMNS]
    for name, arm in found["arms"].items():
        vision, text = (sorted(arm["tokens"][kind]) for kind in ("vision", "text"))
        shares = [v / (v + t) for v, t in zip(arm["tokens"]["vision"], arm["tokens"]["text"], strict=True)]
        bits = ", ".join(f"{family} {spread['mean']:.3f}" for family, spread in arm["bits_per_byte"].items())
        lines.append(
            f"{name}: {_span(vision)} vision and {_span(text)} text tokens, a vision share of {min(shares):.4f} to "
            f"{max(shares):.4f}; bits a byte: {bits}"
        )
    for name, dips in found["dips"].items():
        known = [dip for dip in dips if dip["rise"] is not None]
        if known:
            rises = ", ".join(f"{dip['rise']:+.3f}" for dip in known)
            back = ", ".join("never" if d["recovered"] is None else f"{d['recovered']:.0%}" for d in known)
            lines.append(
                f"{name}: from the last look before vision to the worst one after it the held-out text loss changed by "
                f"{rises} nats (above 0: it dipped); back at its value before by {back} of the training, seed by seed"
            )
    for name, columns in found["differences"].items():
        for measure in MEASURES:
            verdicts = {column.name: _verdict(columns[column.name][measure], measure) for column in COLUMNS}
            for verdict in ("early is better", "early is worse", "within noise", "unknown"):
                if chosen := [column for column, each in verdicts.items() if each == verdict]:
                    lines.append(f"early against {name}, {measure}: {verdict} in {', '.join(chosen)}")
    return lines


def _verdict(difference: Mapping[str, Any], measure: str) -> str:
    mean, half = difference["mean"], difference["half"]
    if mean is None or half is None:
        return "unknown"
    if abs(mean) <= half or mean == 0:
        return "within noise"
    return "early is better" if (mean > 0) == (measure == "score") else "early is worse"


def _chance(found: Mapping[str, Any]) -> list[float]:
    """Of each column, on the tasks that all arms were asked."""
    arm = next(iter(found["arms"].values()))
    return [arm["columns"][column.name]["chance"] for column in COLUMNS]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _value(spread: Mapping[str, Any], measure: str) -> str:
    digits = 1 if measure == "score" else 3
    sd = "" if spread["sd"] is None else f" ± {spread['sd']:.{digits}f}"
    return f"{spread['mean']:.{digits}f}{sd}"


def _difference(difference: Mapping[str, Any], measure: str) -> str:
    digits = 1 if measure == "score" else 3
    if difference["mean"] is None:
        return ""
    half = "" if difference["half"] is None else f" ± {difference['half']:.{digits}f}"
    return f"{difference['mean']:+.{digits}f}{half}"


def _span(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if values[0] == values[-1] else f"{values[0]:,} to {values[-1]:,}"


def curves(events: Mapping[str, Sequence[Event]], metric: str) -> dict[str, Points]:
    """Arm -> mean over its seeds of a metric by optimizer step, where all of its seeds have it."""
    found: dict[str, Points] = {}
    for name in ARMS:
        runs = [
            {row["step"]: row[metric] for row in rows if metric in row}
            for task, rows in events.items()
            if task.startswith(f"{STEP}-{name}-")
        ]
        if runs:
            common = sorted(set.intersection(*(set(run) for run in runs)))
            found[name] = [(step, fmean(run[step] for run in runs)) for step in common]
    return found


def against_early(series: Mapping[str, Points]) -> dict[str, Points]:
    """Each arm's curve minus early's, where both have a value; early's own is the line at 0 and keeps the colours."""
    early = dict(series.get("early", ()))
    return {
        name: [(step, value - early[step]) for step, value in points if step in early]
        for name, points in series.items()
        if early
    }


def late_enough(points: Points) -> Points:
    """Without the first tenth, whose losses would take all of an axis."""
    return [(step, value) for step, value in points if step >= points[-1][0] / 10]


def render(summary: Mapping[str, Any], events: Mapping[str, Sequence[Event]], extra: Mapping[str, Any]) -> str:
    """The page of an ablation; arguments as of ``components.finish.report.render``."""
    found = summary["ablation"]
    text = curves(events, "held_out/text")
    charts = (
        ("Held-out text loss", "mean over the text families", text),
        ("The same, minus the early arm's", "a dip of the paper's kind is a rise and a fall", against_early(text)),
        ("Held-out vision loss", "mean over the vision families", curves(events, "held_out/vision")),
        ("Training loss, text", "mean over the batch's text targets", curves(events, "loss/text")),
        ("Training loss, vision", "from where vision begins", curves(events, "loss/vision")),
    )
    cards = []
    for title, note, series in charts:
        shown = {name: late_enough(points) for name, points in series.items()}
        if chart := line_chart(shown, x_label="optimizer step", y_label="nats a token"):
            head = f'<div class="charthead"><h3>{title}</h3><span>{note}</span></div>'
            cards.append(f'<div class="card">{head}{chart}</div>')
    title = escape(str(extra.get("run_id", "run")))
    error = f'<p class="no">{escape(str(extra["error"]))}</p>' if extra.get("error") else ""
    notes = "".join(f"<li>{escape(line)}</li>" for line in sentences(found))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>moonflow · {title}</title><style>{CSS}</style></head>'
        f'<body><main>\n<div class="brand">moonflow</div><h1>{title}: when should images come?</h1>{error}'
        '<p class="quiet">Every arm is trained on the same number of vision and of text tokens, from the same first '
        "weights of its seed, with one learning-rate schedule; they differ in when vision begins and how dense it is "
        "then. Beside our figures stands Table 1 of arXiv 2602.02276, whose model, data and tests are other ones: "
        "compare the order of the arms, not the values.</p>\n"
        + "\n".join(_table(found, measure) for measure in MEASURES)
        + '\n<h2>On the way</h2><p class="quiet">Means over the seeds of an arm, from a tenth of the training on.</p>'
        f'<div class="grid2">{"".join(cards)}</div>\n<h2>In words</h2><ul class="reasons">{notes}</ul>\n'
        "</main></body></html>\n"
    )


def _table(found: Mapping[str, Any], measure: str) -> str:
    head = "".join(f'<th scope="col">{text}</th>' for text in ("", "vision from", "vision : text"))
    head += "".join(f'<th scope="col">{column.name}</th>' for column in COLUMNS)
    body = []
    for name, arm in found["arms"].items():
        facts = f"<td>{arm['vision_start']:.0%}</td><td>{arm['ratio']}</td>"
        cells = "".join(f"<td>{_value(arm['columns'][column.name][measure], measure)}</td>" for column in COLUMNS)
        body.append(f'<tr><th class="row" scope="row">{name}<small>ours</small></th>{facts}{cells}</tr>')
        if measure == "score":
            cells = "".join(f'<td class="plain">{arm["columns"][c.name]["paper"]:.1f}</td>' for c in COLUMNS)
            body.append(
                f'<tr><th class="row" scope="row"><small>K2.5 Table 1</small></th><td></td><td></td>{cells}</tr>'
            )
    if measure == "score":
        cells = "".join(f'<td class="plain">{value:.1f}</td>' for value in _chance(found))
        body.append(f'<tr><th class="row" scope="row">best constant answer</th><td></td><td></td>{cells}</tr>')
    for name, columns in found["differences"].items():
        cells = ""
        for column in COLUMNS:
            verdict = _verdict(columns[column.name][measure], measure)
            tone = {"early is better": "yes", "early is worse": "no"}.get(verdict, "plain")
            cells += f'<td class="{tone}">{_difference(columns[column.name][measure], measure)}</td>'
        label = f"early &minus; {name}<small>ours, 95%</small>"
        body.append(f'<tr><th class="row" scope="row">{label}</th><td></td><td></td>{cells}</tr>')
        if measure == "score":
            gaps = (f"{ARMS['early'].paper[c.name] - ARMS[name].paper[c.name]:+.1f}" for c in COLUMNS)
            cells = "".join(f'<td class="plain">{gap}</td>' for gap in gaps)
            body.append(f'<tr><th class="row" scope="row"><small>K2.5</small></th><td></td><td></td>{cells}</tr>')
    title = MEASURES[measure]
    return (
        f'<h2>{title[0].upper()}{title[1:]}</h2><p class="quiet">&plusmn; of an arm is the standard deviation over its '
        "seeds; of a difference, the half width of the 95% interval of its mean, seed by seed (Student's t). Green: "
        'early is better beyond it; red: worse.</p><div class="card scroll"><table class="lines">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )
