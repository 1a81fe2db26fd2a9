"""The page of a Toggle ablation: its tables, the verdicts on the claims, and lengths and accuracy over the rounds.
``toggle.html`` is the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.ablation.curves import Events, curves
from components.ablation.page import render_page
from components.ablation.toggle.arms import ARMS
from components.ablation.toggle.claims import claims
from components.ablation.toggle.comparison import STEP
from components.ablation.toggle.table import sentences, tables
from components.runtime.pages.charts import line_chart

_PAGE = Path(__file__).with_name("toggle.html")
CURVES = (
    ("Length of an answer", "mean over a round's episodes", "tokens/response", "tokens"),
    ("Accuracy", "share of a round's episodes that are correct", "accuracy/mean", "share"),
)


def render(found: Mapping[str, Any], events: Events, extra: Mapping[str, Any]) -> str:
    """The page of an ablation.

    Args:
        found: the result of ``comparison.compare``.
        events: task name -> rows of its ``metrics.jsonl``.
        extra: any of ``run_id``, ``error`` (why the run ended early) and ``warnings``.
    """
    charts = [
        (title, note, line_chart(curves(events, STEP, ARMS, metric), x_label="round", y_label=unit))
        for title, note, metric, unit in CURVES
    ]
    return render_page(
        _PAGE, extra, claims=claims(found), tables=tables(found), charts=charts, sentences=sentences(found)
    )
