"""The page of a fusion ablation: its tables, and the curves of its arms. ``fusion.html`` is the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.ablation.curves import curves
from components.ablation.fusion.arms import ARMS, COLUMNS
from components.ablation.fusion.comparison import MEASURES, STEP, Event
from components.ablation.fusion.table import rows, sentences
from components.ablation.page import render_page
from components.runtime.pages.charts import Points, line_chart

_PAGE = Path(__file__).with_name("fusion.html")
VERDICT_TONES = {"early is better": "yes", "early is worse": "no"}


def render(found: Mapping[str, Any], events: Mapping[str, Sequence[Event]], extra: Mapping[str, Any]) -> str:
    """The page of an ablation.

    Args:
        found: the result of ``comparison.compare``.
        events: task name -> rows of its ``metrics.jsonl``.
        extra: any of ``run_id``, ``error`` (why the run ended early) and ``warnings``.
    """
    text = curves(events, STEP, ARMS, "held_out/text")
    charts = (
        ("Held-out text loss", "mean over the text families", text),
        ("The same, minus the early arm's", "the paper's dip shows as a rise and a fall", against_early(text)),
        ("Held-out vision loss", "mean over the vision families", curves(events, STEP, ARMS, "held_out/vision")),
        ("Training loss, text", "mean over the batch's text targets", curves(events, STEP, ARMS, "loss/text")),
        ("Training loss, vision", "from where vision begins", curves(events, STEP, ARMS, "loss/vision")),
    )
    return render_page(
        _PAGE,
        extra,
        sentences=sentences(found),
        charts=[(title, note, _drawing(series)) for title, note, series in charts],
        columns=[column.name for column in COLUMNS],
        measures=[(f"{title[0].upper()}{title[1:]}", rows(found, measure)) for measure, title in MEASURES.items()],
        verdict_tones=VERDICT_TONES,
    )


def _drawing(series: Mapping[str, Points]) -> str:
    shown = {name: late_enough(points) for name, points in series.items()}
    return line_chart(shown, x_label="optimizer step", y_label="nats a token")


def against_early(series: Mapping[str, Points]) -> dict[str, Points]:
    """Each arm's curve minus early's, where both have a value.

    Early's own curve, a line at 0, stays, so that every arm keeps its colour.
    """
    early = dict(series.get("early", ()))
    return {
        name: [(step, value - early[step]) for step, value in points if step in early]
        for name, points in series.items()
        if early
    }


def late_enough(points: Points) -> Points:
    """The points without the first tenth, whose high losses would take up the whole axis."""
    return [(step, value) for step, value in points if step >= points[-1][0] / 10]
