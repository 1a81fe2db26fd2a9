"""The page of a swarm ablation: claims, curves over N and over rounds, and tables. ``swarm.html`` is the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.ablation.curves import Events, curves
from components.ablation.page import render_page
from components.ablation.swarm.arms import ARMS, TRAINED
from components.ablation.swarm.claims import claims
from components.ablation.swarm.comparison import STEP
from components.ablation.swarm.table import WAYS, sentences, tables
from components.runtime.pages.charts import Points, line_chart
from model.swarm.ways import AGENTS, SINGLE, SWARM

_PAGE = Path(__file__).with_name("swarm.html")
MEANS = "means over seeds"
DRAWN = ("swarm", "untrained_swarm", "oracle_split", *SINGLE)  # a chart has six colours


def render(found: Mapping[str, Any], events: Events, extra: Mapping[str, Any]) -> str:
    """The page of an ablation.

    Args:
        found: the result of ``comparison.compare``.
        events: task name -> rows of its ``metrics.jsonl``.
        extra: any of ``run_id``, ``error`` (why the run ended early) and ``warnings``.
    """
    charts = [
        *((title, f"the arm {drawn_arm(found)}, {of}",
           line_chart(by_parts(found, measure), x_label="N", y_label=unit))
          for title, measure, unit, of in (
              ("Item-F1", "f1", "item-F1", MEANS),
              ("Time", "seconds", "seconds a task", f"{MEANS}: swarms, and the seeds' best single agents"),
              ("Critical steps", "critical_steps", "steps a task", MEANS),
              ("Largest context", "context_tokens", "tokens", MEANS),
          )),
        *((title, MEANS, line_chart(curves(events, STEP, ARMS, metric), x_label="round", y_label=unit))
          for title, metric, unit in (
              ("Reward without bonuses", "reward/perf", "reward"),
              ("Parallel work", "swarm/parallelism", "assignments at once"),
              ("Subtasks", "swarm/subtasks", "subtasks an episode"),
              ("Finished subtasks", "reward/finish", "share of the subtasks"),
          )),
    ]  # fmt: skip
    return render_page(
        _PAGE, extra, claims=claims(found), tables=tables(found), charts=charts, sentences=sentences(found)
    )


def drawn_arm(found: Mapping[str, Any]) -> str:
    """``trained``, or the first arm if there is none."""
    return TRAINED if TRAINED in found["arms"] else str(next(iter(found["arms"])))


def by_parts(found: Mapping[str, Any], measure: str) -> dict[str, Points]:
    """Way -> (N, mean over seeds) of a measure for the arm that is drawn."""
    rows = found["arms"][drawn_arm(found)]["table"]
    # Seconds have the swarm and the best single agents alone, which may be those of before PARL.
    drawn = (SWARM, *AGENTS) if measure == "seconds" else DRAWN
    points = {
        WAYS[way]: [(r["size"], r[measure]["mean"]) for r in rows if r["way"] == way and r["size"] > 1 and r[measure]]
        for way in drawn
    }
    return {way: line for way, line in points.items() if line}
