"""How a local run stands, read from its folder: ``tasks/<step>.json`` and ``progress/<step>.json``."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from components.steps import STEPS

STYLES = {
    "running": "bold cyan",
    "done": "green",
    "kept": "green",
    "failed": "bold red",
    "waiting": "dim",
    "skipped": "dim",
}


@dataclass(frozen=True)
class TaskState:
    """One step: ``state`` is waiting, running, done, kept (finished in an earlier call) or failed."""

    state: str = "waiting"
    seconds: float = 0.0
    error: str = ""
    done: int = 0
    total: int = 0
    eta_s: float | None = None
    figures: dict[str, float] = field(default_factory=dict)


def task_state(run_dir: Path, step: str) -> TaskState:
    """Where ``step`` stands in this call of ``moonflow run``."""
    task = _read(run_dir / "tasks" / f"{step}.json")
    if not task:
        return TaskState()
    state = "kept" if task["state"] == "done" and task.get("kept") else task["state"]
    seconds = task.get("ended", time.time()) - task["started"]
    progress = _read(run_dir / "progress" / f"{step}.json")
    if not progress or progress["updated"] < task["started"]:
        return TaskState(state, seconds, task.get("error", ""))
    return TaskState(
        state,
        seconds,
        task.get("error", ""),
        progress["done"],
        progress["total"],
        progress["eta_s"],
        progress["figures"],
    )


def progress_table(run_dir: Path, started: float) -> Table:
    """The live table: a row a step."""
    table = Table(title=f"moonflow run {run_dir.name}  {time.time() - started:.0f} s", title_justify="left")
    for name in ("step", "state", "progress", "tokens/s", "loss", "reward", "time", "ETA"):
        table.add_column(name, justify="left" if name in ("step", "state") else "right")
    for step in STEPS:
        now = task_state(run_dir, step)
        figures = now.figures
        table.add_row(
            step,
            f"[{STYLES[now.state]}]{now.state}",
            f"{now.done}/{now.total}" if now.total else "",
            _figure(figures, "tokens_per_s", "{:,.0f}"),
            _figure(figures, "loss", "{:.3f}"),
            _figure(figures, "reward", "{:.3f}"),
            f"{now.seconds:.1f} s" if now.seconds else "",
            f"{now.eta_s:.0f} s" if now.eta_s is not None and now.state == "running" else "",
        )
    return table


def _figure(figures: dict[str, float], name: str, form: str) -> str:
    return form.format(figures[name]) if name in figures else ""


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
