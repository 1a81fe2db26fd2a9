"""The progress of a local run, read from its folder: ``tasks/<step>.json`` and ``progress/<step>.json``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

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
    """The state of one task: waiting, running, done, kept (finished in an earlier call), failed or skipped."""

    state: str = "waiting"
    seconds: float = 0.0
    error: str = ""
    done: int = 0
    total: int = 0
    eta_s: float | None = None
    figures: dict[str, float] = field(default_factory=dict)


def task_state(run_dir: Path, step: str) -> TaskState:
    """The state of ``step`` in this call of ``moonflow run``."""
    task = _read(run_dir / "tasks" / f"{step}.json")
    if not task:
        # finish runs last: a task that has not started by then never will.
        over = step != "finish" and (run_dir / "tasks" / "finish.json").exists()
        return TaskState("skipped" if over else "waiting")
    state = "kept" if task["state"] == "done" and task.get("kept") else task["state"]
    seconds = max(0.0, task.get("ended", time.time()) - task["started"])  # the clock may have been set back
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


def busy_seconds(run_dir: Path, steps: Iterable[str]) -> float:
    """Seconds of this call in which at least one of ``steps`` ran; some run at the same time."""
    tasks = [task for step in steps if (task := _read(run_dir / "tasks" / f"{step}.json"))]
    busy = until = 0.0
    for started, ended in sorted((task["started"], task.get("ended", time.time())) for task in tasks):
        busy += max(0.0, ended - max(started, until))
        until = max(until, ended)
    return busy


# Wide enough for their content, so that the table does not change its width; all together below 80 characters.
COLUMNS = {"step": 15, "state": 7, "progress": 9, "tokens/s": 8, "loss": 6, "reward": 6, "time": 7, "ETA": 6}


def progress_table(run_dir: Path, began: float, names: Sequence[str]) -> Table:
    """The live table with a row per task of ``names``; ``began`` is a time of the monotonic clock, in seconds."""
    title = escape(f"moonflow run {run_dir.name}, {duration(time.monotonic() - began)}")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for name, width in COLUMNS.items():
        table.add_column(name, justify="left" if name in ("step", "state") else "right", min_width=width, no_wrap=True)
    for step in names:
        now = task_state(run_dir, step)
        figures = now.figures
        table.add_row(
            step,
            f"[{STYLES[now.state]}]{now.state}",
            f"{now.done}/{now.total}" if now.total else "",
            _figure(figures, "tokens_per_s", "{:,.0f}"),
            _figure(figures, "loss", "{:.3f}"),
            _figure(figures, "reward", "{:.3f}"),
            duration(now.seconds) if now.seconds else "",
            duration(now.eta_s) if now.eta_s is not None and now.state == "running" else "",
        )
    return table


def duration(seconds: float) -> str:
    """Seconds as text: ``8.2 s``, ``97 s``, ``12m 5s``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds // 60:.0f}m {seconds % 60:.0f}s"


def _figure(figures: dict[str, float], name: str, form: str) -> str:
    return form.format(figures[name]) if name in figures else ""


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
