"""The runs of ``moonflow seeds`` side by side, on the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from components.runtime.pages.numbers import duration
from pipelines.docs.markdown import cell, table
from pipelines.result import say
from pipelines.seeds.results import SeedRun
from pipelines.seeds.rule import STRIDE

HEAD = ("suite", "chance", "mean", "sd", "worst (seeds)", "tasks per run")
LET_THROUGH = {"promoted": "promoted", "passed": "passed the gate"}
RULE = f"In run `seeds i` the seed of every step is the profile's plus {STRIDE} * i; the held-out tasks are the same."


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print what ``results.compare`` found."""
    if found["suites"]:
        shown = Table(title=_title(found), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in HEAD:
            shown.add_column(name, justify="left" if name == "suite" else "right", no_wrap=True)
        for row in _rows(found):
            shown.add_row(*row)
        console.print(shown)
    for line in sentences(found):
        say(console, line)


def markdown(found: Mapping[str, Any]) -> str:
    """The same as a page."""
    parts = [f"# {found['profile']} with other seeds"]
    if found["suites"]:
        parts += [f"{_title(found).capitalize()}.", table(HEAD, _rows(found))]
    parts += ["\n".join(f"- {cell(line)}" for line in sentences(found))]
    runs = [run for run in found["runs"] if run["scores"]]
    if runs:
        values = {(run["number"], row["suite"]): f"{row['value']:.2f}" for run in runs for row in run["scores"]}
        head = ["suite", *(f"seeds {run['number']}" for run in runs)]
        names = [suite["suite"] for suite in found["suites"]]
        parts += [table(head, [[name, *(values.get((run["number"], name), "") for run in runs)] for name in names])]
    return "\n\n".join([*parts, RULE]) + "\n"


def sentences(found: Mapping[str, Any]) -> list[str]:
    """How often the gate let a model through, which runs were held back or failed and why, and the seconds of a run."""
    count = sum(len(found[state]) for state in ("promoted", "passed", "held", "failed"))
    lines = [f"{LET_THROUGH[state]} {len(found[state])} of {count}" for state in LET_THROUGH if found[state]]
    lines = lines or [f"promoted 0 of {count}"]
    for state, words in (("held", "held back by the gate"), ("failed", "failed")):
        lines += [f"{words}: {_one(run)}" for run in found["runs"] if run["state"] == state]
    if found["unfinished"]:
        lines.append(f"not finished: {', '.join(f'seeds {number}' for number in found['unfinished'])}")
    if seconds := found["seconds"]:
        longest = f"longest {seconds['longest']:.0f} (seeds {seconds['longest_run']})"
        lines.append(f"seconds per run: mean {seconds['mean']:.0f}, {longest}")
    return lines


def outcome_of(run: SeedRun) -> str:
    """One line about a run that has ended."""
    words = {**LET_THROUGH, "held": "held back by the gate", "failed": "failed"}[run.state]
    why = f": {'; '.join(run.why)}" if run.why else ""
    return f"seeds {run.number}: {words} after {duration(run.seconds or 0.0)}{why}"


def _title(found: Mapping[str, Any]) -> str:
    runs = max(len(suite["n"]) for suite in found["suites"])
    return f"held-out score of the final model, {runs} run{'s' if runs > 1 else ''}"


def _rows(found: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            suite["suite"],
            f"{suite['chance']:.2f}",
            f"{suite['mean']:.3f}",
            "" if suite["sd"] is None else f"{suite['sd']:.3f}",
            f"{suite['worst']:.2f} ({suite['worst_run']})",
            _span(suite["n"]),
        ]
        for suite in found["suites"]
    ]


def _one(run: Mapping[str, Any]) -> str:
    return f"seeds {run['number']} ({'; '.join(run['why'])})"


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"
