"""``moonflow swarm show``: the page of a swarm episode's trace, and its lanes in the terminal.

The trace is a JSON file (`model.swarm.trace`), or those that the steps of a run kept in MLflow.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from components.runtime.pages.episode import brief, ended, render, seconds
from components.runtime.pages.numbers import figure
from components.runtime.pages.trace_files import FOLDER
from components.runtime.tracking.mlflow_runs import download_files
from model.boundary.errors import MoonflowError
from model.swarm.trace import Agent, Step, Trace
from pipelines.result import say
from pipelines.run_folder import made_by_a_run, run_id_of, services_folder
from pipelines.services import exported, visited

KEY = {"completion": "completion", "tool": "tool call", "waiting": "waits for sub-agents"}
LANE, NARROWEST = 60, 20  # characters of a lane at most and at least
MARKS = {"completion": ("█", "blue"), "tool": ("▒", "green"), "waiting": ("─", "dim"), "idle": (" ", "")}
LOWER = {"idle": 0, "waiting": 1, "tool": 2, "completion": 3}  # where steps share a character, the highest is drawn


def show(given: Path, output: Path | None, console: Console) -> None:
    """Write the pages and print the lanes of one trace, or a line for each of several.

    Args:
        given: a trace's JSON file, or the folder of a run.
        output: the page to write, or for a run the folder; None: next to the file, or ``swarm`` in the run's folder.

    Raises:
        MoonflowError: the file is no trace, the folder no run's, or the run kept no traces.
    """
    if given.is_dir():
        _show_run(made_by_a_run(given), output, console)
        return
    trace = _read(given)
    page = output or given.with_suffix(".html")
    if page.resolve() == given.resolve():
        raise MoonflowError(f"{given} would be replaced by its page: give another --output")
    _write(page, trace)
    _print_lanes(trace, console)
    say(console, f"wrote {page}")


def _show_run(run_dir: Path, output: Path | None, console: Console) -> None:
    folder = output or run_dir / FOLDER
    with tempfile.TemporaryDirectory() as fetched:
        waiting = console.status("asking the run's MLflow")
        with waiting, visited(services_folder(run_dir)) as environment, exported(environment):
            found = download_files(run_id_of(run_dir), FOLDER, ".json", Path(fetched))
        traces = {f"{step}-{path.stem}": (path, _read(path)) for step, path in found}
        if not traces:
            raise MoonflowError(f"{run_dir} has no traces: only the steps parl and evaluate keep some, when they run")
        for name, (path, trace) in traces.items():
            _write(folder / f"{name}.html", trace)
            (folder / f"{name}.json").write_bytes(path.read_bytes())
    console.print(_listed({name: trace for name, (_, trace) in traces.items()}))
    say(
        console,
        f"wrote {len(traces)} pages and traces to {folder}; moonflow swarm show FILE prints the lanes of one",
    )


def _read(path: Path) -> Trace:
    try:
        return Trace.from_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise MoonflowError(
            f"{path} does not exist: give a trace's JSON file, or a run's folder, which `moonflow run "
            "--profile tiny` makes"
        ) from None
    except OSError as error:
        raise MoonflowError(f"{path} cannot be read: {error.strerror}; make it readable") from None


def _write(page: Path, trace: Trace) -> None:
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(render(trace), encoding="utf-8")
    except OSError as error:
        raise MoonflowError(f"cannot write {page}: {error.strerror}; give another --output") from error


def _listed(traces: dict[str, Trace]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("episode", "reward", "steps", "agents", "seconds", "ended"):
        table.add_column(name, justify="left" if name in ("episode", "ended") else "right", no_wrap=True)
    for name, trace in traces.items():
        steps = f"{trace.critical_steps} of {trace.budget}"
        how = ended(trace.outcome) or "answer"
        row = (
            name,
            "" if trace.reward is None else f"{trace.reward:.2f}",
            steps,
            str(len(trace.agents)),
            f"{trace.seconds:.2f}",
            how,
        )
        table.add_row(*map(Text, row))
    return table


def _print_lanes(trace: Trace, console: Console) -> None:
    """The header of an episode and a line for each agent."""
    totals = trace.totals
    for name, value in (("question", trace.question), ("answer", trace.answer), ("broke", trace.failure)):
        if value:
            say(console, f"{name:<10}{brief(value)}")
    parts = "".join(f", {name} {figure(value)}" for name, value in trace.parts.items())
    how = f", no answer: {ended(trace.outcome)}" if ended(trace.outcome) else ""
    if trace.reward is not None:
        say(console, f"reward    {figure(trace.reward)}{parts}{how}")
    elif how:
        say(console, f"ended     {how.removeprefix(', ')}")
    say(
        console,
        f"critical  {trace.critical_steps} of {trace.budget} steps, {seconds(trace.seconds)}, "
        f"{totals.completions} completions, {totals.tool_calls} calls, {figure(totals.prompt_tokens)} tokens read, "
        f"{figure(totals.new_tokens)} new",
    )
    console.print(_lanes(trace, min(LANE, max(NARROWEST, console.width - 52))))
    key = ", ".join(f"{MARKS[kind][0]} {name}" for kind, name in KEY.items())
    missing = f" ({trace.unrecorded} of its {trace.critical_steps} steps left no message)" if trace.unrecorded else ""
    say(console, f"◆ critical path{missing}, ✗ no answer, {key}; the lanes are {seconds(_span(trace))} long")


def _lanes(trace: Trace, width: int) -> Table:
    critical = set(trace.critical_path)
    table = Table(box=None, padding=(0, 1, 0, 0), show_header=True, header_style="dim")
    table.add_column("")
    table.add_column("agent", max_width=26, no_wrap=True, overflow="ellipsis")
    table.add_column("", min_width=width, no_wrap=True)
    for name in ("steps", "calls", "new"):
        table.add_column(name, justify="right", no_wrap=True)
    for place in (0, *(place for group in trace.groups for place in group)):
        agent, each = trace.agents[place], trace.agents[place].totals
        mark = ("◆" if place in critical else "") + ("✗" if ended(agent.outcome) else "")
        who = brief(f"{agent.name} {agent.task}" if place else agent.name)
        style = "bold" if place in critical else ""
        lane = _lane(agent, _span(trace), width)
        table.add_row(
            mark, Text(who, style), lane, str(agent.turns), str(each.tool_calls), figure(each.new_tokens)
        )  # fmt: skip
    return table


def _lane(agent: Agent, span: float, width: int) -> Text:
    """``width`` characters; a step has at least one, and where steps share one, the completion is drawn."""
    cells = ["idle"] * width
    for step in agent.steps:
        first = min(width - 1, int(step.start / span * width))
        last = max(first, min(width - 1, round(step.end / span * width) - 1))
        for cell in range(first, last + 1):
            cells[cell] = max(cells[cell], _kind(step), key=LOWER.__getitem__)
    return Text.assemble(*(MARKS[kind] for kind in cells))


def _kind(step: Step) -> str:
    return "waiting" if step.tool == "assign_task" else step.kind


def _span(trace: Trace) -> float:
    return max([agent.end for agent in trace.agents] + [1e-6])
