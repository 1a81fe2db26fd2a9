"""What the Kubeflow UI shows of a finished task: a Markdown card with links to its MLflow run and its manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.runtime.checkpoints.manifest import Manifest
from components.runtime.pages.charts import picture
from components.runtime.pages.numbers import duration
from components.runtime.tracking.mlflow_runs import mlflow_link

PICTURED = ("loss/total", "loss", "reward", "reward/mean")
"""A card draws the first of these metrics that the step has; if it has none, its first loss or reward."""


def step_card(
    manifest: Manifest, *, kept: bool, queued_s: float | None = None, history: Sequence[Mapping[str, float]] = ()
) -> str:
    """The card of a step; ``kept``: an earlier attempt or run had already written the manifest.

    ``queued_s``: seconds from its TrainJob's creation until the first pod had a node; None without a job, or unknown.

    ``history``: its metrics by optimizer step, of which the card shows the loss or the reward as a picture.

    ``extra["markdown"]`` of the manifest, if there is one, is the step's own part below.
    """
    extra = manifest.extra
    rows = {
        "MLflow run": _run(manifest.mlflow_run_id),
        "manifest": f"`{manifest.uri}/manifest.json`",
        "manifest sha256": f"`{manifest.sha256}`",
        "made from": ", ".join(f"`{name}` {uri}" for name, uri in sorted(extra.get("inputs", {}).items())),
        "git commit": f"`{manifest.git_commit}`" if manifest.git_commit else "",
        "queued": duration(queued_s) if queued_s is not None else "",
        "time": f"{extra['seconds']:,.1f} s" if "seconds" in extra else "",
        "tokens": f"{manifest.tokens_seen:,}" if manifest.tokens_seen else "",
        "finished": f"{manifest.created_at}{', before this task: kept' if kept else ''}",
        "warnings": "; ".join(map(str, extra.get("warnings", ()))),
    }
    card = _card(f"{manifest.step} of run {manifest.run_id}", rows)
    return "\n".join(filter(None, (card, _curve(history) or _scores(extra.get("evals", ())), extra.get("markdown"))))


def _curve(history: Sequence[Mapping[str, float]]) -> str:
    names = {name: None for row in history for name in row}
    others = [name for name in names if name.startswith(("loss", "reward"))]
    name = next((name for name in (*PICTURED, *others) if name in names), "")
    points = [(row["step"], row[name]) for row in history if name in row]
    return _titled(name, picture(points, x_label="optimizer step", y_label=name))


def _scores(evals: Sequence[Mapping[str, Any]]) -> str:
    """Mean held-out score over the suites, stage by stage."""
    by_step: dict[str, list[float]] = {}
    for row in evals:
        by_step.setdefault(str(row["step"]), []).append(float(row["value"]))
    points = [(float(number), sum(values) / len(values)) for number, values in enumerate(by_step.values())]
    ends = " to ".join([*by_step][:: len(by_step) - 1 or 1])
    return _titled("mean score", picture(points, x_label=f"stage, {ends}", y_label="mean score"))


def _titled(title: str, drawn: str) -> str:
    return f"**{title}**\n\n{drawn}\n" if drawn else ""


def run_card(run_id: str, mlflow_run_id: str, report: str, error: str) -> str:
    """The card of the whole run; ``report`` is the address of its HTML report in the store."""
    rows = {
        "ended": f"failed: {error}" if error else "well",
        "MLflow run": _run(mlflow_run_id),
        "report": f"`{report}`",
    }
    return _card(f"run {run_id}", rows)


def _run(mlflow_run_id: str) -> str:
    link = mlflow_link(mlflow_run_id)
    if not link:
        return f"`{mlflow_run_id}`" if mlflow_run_id else "none: MLflow was away or is not set"
    return f"[{mlflow_run_id}]({link})"


def _card(title: str, rows: Mapping[str, str]) -> str:
    def cell(text: str) -> str:
        return " ".join(text.split()).replace("|", "\\|")

    # No HTML: Kubeflow's UI shows it as text.
    lines = [f"| {name} | {cell(value)} |" for name, value in rows.items() if value]
    return "\n".join([f"### {title}", "", "| | |", "|---|---|", *lines, ""])
