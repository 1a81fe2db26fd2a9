"""What the Kubeflow UI shows of a finished task: a Markdown card that leads to its MLflow run and its manifest."""

from __future__ import annotations

from collections.abc import Mapping

from components.runtime.manifest import Manifest
from components.runtime.mlflow_runs import mlflow_link


def step_card(manifest: Manifest, *, kept: bool) -> str:
    """The card of a step; ``kept``: an earlier attempt or run had already written the manifest.

    ``extra["markdown"]`` of the manifest, if there is one, is the step's own part below.
    """
    extra = manifest.extra
    rows = {
        "MLflow run": _run(manifest.mlflow_run_id),
        "manifest": f"`{manifest.uri}/manifest.json`",
        "manifest sha256": f"`{manifest.sha256}`",
        "made from": "".join(f"`{name}` {uri}<br>" for name, uri in sorted(extra.get("inputs", {}).items())),
        "git commit": f"`{manifest.git_commit}`" if manifest.git_commit else "",
        "time": f"{extra['seconds']:,.1f} s" if "seconds" in extra else "",
        "tokens": f"{manifest.tokens_seen:,}" if manifest.tokens_seen else "",
        "finished": f"{manifest.created_at}{', before this task: kept' if kept else ''}",
        "warnings": "<br>".join(map(str, extra.get("warnings", ()))),
    }
    card = _card(f"{manifest.step} of run {manifest.run_id}", rows)
    return f"{card}\n{extra['markdown']}" if "markdown" in extra else card


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

    lines = [f"| {name} | {cell(value)} |" for name, value in rows.items() if value]
    return "\n".join([f"### {title}", "", "| | |", "|---|---|", *lines, ""])
