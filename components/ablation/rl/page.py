"""The page of an RL ablation: the verdicts on the claims, its tables, and the rewards of every seed over the rounds.
``rl.html`` is the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.ablation.curves import Events, curves_of_seeds
from components.ablation.page import render_page
from components.ablation.rl.arms import JOINT, STEP, VISUAL
from components.ablation.rl.claims import claims
from components.ablation.rl.table import sentences, tables
from components.runtime.pages.charts import line_chart

_PAGE = Path(__file__).with_name("rl.html")
DRAWN = ((VISUAL, "RL on images alone"), (JOINT, "joint RL after RFT"))
CURVES = (("Reward", "reward/mean", "reward"), ("Length of an answer", "tokens/response", "tokens"))


def render(found: Mapping[str, Any], events: Events, extra: Mapping[str, Any]) -> str:
    """The page of an ablation.

    Args:
        found: the result of ``comparison.compare``.
        events: task name -> rows of its ``metrics.jsonl``.
        extra: any of ``run_id``, ``error`` (why the run ended early) and ``warnings``.
    """
    charts = [
        (title, note, line_chart(curves_of_seeds(events, STEP, arm, metric), x_label="round", y_label=unit))
        for arm, note in DRAWN
        for title, metric, unit in CURVES
    ]
    return render_page(
        _PAGE, extra, claims=claims(found), tables=tables(found), charts=charts, sentences=sentences(found)
    )
