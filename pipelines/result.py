"""The end of a run: the printed tables and the rendered report, both from the files that finish wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from rich import box
from rich.console import Console
from rich.table import Table

from components.ablation import ablations
from components.finish.report import render
from components.runtime.checkpoints.manifest import ORIGIN
from components.runtime.steps import IMPORTED
from components.runtime.tracking.mlflow_runs import web_address
from model.boundary.errors import MoonflowError
from pipelines.progress import busy_seconds, task_state
from pipelines.run_folder import made_by_a_run, resume_command

LABELS = {
    "init": "init",
    IMPORTED: "start",
    "vit_pretrain": "vit",
    "joint_pretrain": "joint",
    "mid_train": "mid",
    "zero_vision_sft": "sft",
    "visual_rl": "vis",
    "rejection_sft": "rft",
    "joint_rl": "rl",
    "parl": "parl",
}
"""Column titles that fit a terminal of 80 columns."""


def render_report(run_dir: Path, output: Path) -> None:
    """Render the report again from ``summary.json`` and ``events.json`` of ``run_dir``.

    Raises:
        MoonflowError: it is no run's folder, the run is not finished, or ``output`` cannot be written.
    """
    run_dir = made_by_a_run(run_dir)
    summary, record = _load(run_dir, "summary.json"), _load(run_dir, "events.json")
    try:
        output.write_text(render(summary, record["events"], record["extra"]))
    except OSError as error:
        raise MoonflowError(f"cannot write {output}: {error.strerror}; give another --output") from error


def print_result(
    run_dir: Path,
    console: Console,
    environment: Mapping[str, str],
    names: Sequence[str],
    *,
    keep: bool,
    seconds: float,
    services_s: float,
    peak_bytes: int,
) -> None:
    """Print scores by step, times, the promotion, the served model's answer, and the addresses of MLflow and report.

    Args:
        seconds, services_s: wall clock of this call, and of the start of the services.
        peak_bytes: the largest resident memory of all processes of this call together.
    """
    summary, extra = _load(run_dir, "summary.json"), _load(run_dir, "events.json")["extra"]
    if "ablation" in summary:
        console.print(_arms(summary["ablation"]))
    else:
        console.print(_evals(summary["evals"]))
    console.print(_times(summary["steps"], run_dir, names, seconds, services_s))
    if "ablation" in summary:
        for line in ablations.of(summary["ablation"]).sentences(summary["ablation"]):
            say(console, f"- {line}")
        say(console, f"table      {run_dir / 'table.md'}")
    else:
        if origin := extra.get(IMPORTED, {}).get(ORIGIN):
            licence = f", licence {', '.join(origin['licences'])}" if origin["licences"] else ""
            say(console, f"start      {origin['source']}{licence}")
        _print_promotion(summary, extra, environment, console)
    for warning in extra.get("warnings", []):
        say(console, f"warning    {warning}", style="yellow")
    say(console, f"MLflow     {mlflow_page(environment)}")
    if not keep:
        say(console, f"           stopped; start it again with {resume_command(run_dir, '--keep')}")
    say(console, f"report     {run_dir / 'report.html'}")
    memory = f"{peak_bytes / 2**30:.1f} GiB (all processes, services included)"
    console.print(f"this call  {seconds:.1f} s, peak memory {memory}", highlight=False)


def _print_promotion(
    summary: Mapping[str, Any], extra: Mapping[str, Any], environment: Mapping[str, str], console: Console
) -> None:
    """What was promoted, or else what the gate says, and what the served model answered."""
    if promoted := summary["promoted"]:
        console.print(f"promoted   version {promoted['version']}, manifest sha256 {promoted['manifest_sha256'][:16]}")
        repository = environment.get("MOONFLOW_GITOPS_REPO", "")
        say(console, f"GitOps     commit {promoted['commit'][:12]} in {repository}")
    else:
        evaluation = extra.get("evaluate", {})
        reasons = "; ".join(map(str, evaluation.get("reasons", []))) or "see the report"
        passed = evaluation.get("decision") == "promote"  # in a pipeline that promotes nothing
        say(console, f"{'gate       passed' if passed else 'promoted   nothing'}: {reasons}")
    if answer := extra.get("serve", {}):
        question, said, right = (answer[key] for key in ("question", "answer", "expected"))
        say(console, f"served     {question!r} about a picture -> {said!r} (right: {right!r})")


def say(console: Console, line: str, style: str | None = None) -> None:
    """Print a line unchanged: rich would take parts of a path or an answer for markup."""
    console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)


def mlflow_page(environment: Mapping[str, str]) -> str:
    """The address of the experiment's table with the pipeline's run and its steps, newest first; MLflow must be up.

    MLflow's start page shows GenAI traces, and its default order hides the steps below their parent.
    """
    shown = web_address(environment)
    try:
        answer = httpx.get(
            f"{environment.get('MLFLOW_TRACKING_URI', '')}/api/2.0/mlflow/experiments/get-by-name",
            params={"experiment_name": environment.get("MLFLOW_EXPERIMENT_NAME", "moonflow")},
        )
        experiment = answer.raise_for_status().json()["experiment"]["experiment_id"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError):
        return shown
    order = "workflowType=machine_learning&orderByKey=attributes.end_time&orderByAsc=false"
    return f"{shown}/#/experiments/{experiment}/runs?{order}"


def _evals(rows: list[dict[str, Any]]) -> Table:
    """Suites by step; the last step's value with its standard error."""
    steps = list(dict.fromkeys(row["step"] for row in rows))
    table = Table(title="held-out score by step", title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for name in ("suite", *(LABELS.get(step, step) for step in steps)):
        table.add_column(name, justify="left" if name == "suite" else "right", no_wrap=True)
    cells = {(row["suite"], row["step"]): row for row in rows}
    suites = {row["suite"]: (row["ability"], row["modality"]) for row in rows}
    group = None
    for suite, kind in sorted(suites.items(), key=lambda item: (item[1], item[0])):
        if kind != group:
            group = kind
            table.add_row(f"[dim]{kind[0]}, {kind[1]}")
        found = [cells.get((suite, step)) for step in steps]
        values = [f"{row['value']:.2f}" if row else "" for row in found]
        if last := found[-1]:
            values[-1] += f" ±{last['stderr']:.2f}"
        table.add_row(f"  {suite}", *values)
    return table


def _arms(found: Mapping[str, Any]) -> Table:
    """The arms of an ablation side by side."""
    compared = ablations.of(found).printed(found)
    table = Table(title=compared.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, name in enumerate(compared.head):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in compared.rows:
        table.add_row(*row)
    return table


def _times(
    steps: list[dict[str, Any]], run_dir: Path, names: Sequence[str], seconds: float, services_s: float
) -> Table:
    table = Table(title="time by step", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("step", "seconds", "tokens/s", "this call"):
        table.add_column(name, justify="left" if name == "step" else "right")
    figures = {row["name"]: row for row in steps}
    for step in names:
        row = figures.get(step, {})
        now = task_state(run_dir, step)
        table.add_row(
            step,
            f"{row['seconds']:.1f}" if row else "",
            f"{row['tokens_per_s']:,.0f}" if row.get("tokens_per_s") else "",
            "kept" if now.state == "kept" else f"{now.seconds:.1f} s" if now.seconds else now.state,
        )
    table.add_row("[dim]services up", "", "", f"{services_s:.1f} s")
    table.add_row("[dim]between steps", "", "", f"{seconds - services_s - busy_seconds(run_dir, names):.1f} s")
    return table


def _load(run_dir: Path, name: str) -> dict[str, Any]:
    path = run_dir / name
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise MoonflowError(f"{path} does not exist: finish the run with {resume_command(run_dir)}") from None
    except OSError as error:
        raise MoonflowError(f"{path} cannot be read: {error.strerror}; make it readable") from None
    except ValueError as error:
        raise MoonflowError(f"{path} is damaged ({error}): write it again with {resume_command(run_dir)}") from None
