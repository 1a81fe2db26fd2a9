"""What ``moonflow evaluate`` shows: progress while it runs, and the scores as a table or as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from model.data.samples.sample import Sample
from model.evals.score import Score, summarise
from model.evals.suites import Suite
from model.rl.environment import FAILED, Episode

FAILURES_SHOWN = 3  # of a suite; --json has all


@dataclass
class Results:
    """What is known of an evaluation so far.

    Attributes:
        about: what was measured: ``checkpoint``, ``engine``, ``tasks``.
        tasks: suite name -> its tasks, of the suites that are run.
        passed_over: suite name -> why it is not run.
        chance: suite name -> score of the best constant answer.
        scores: suite name -> score, of those that are finished.
        failures: suite name -> one line for each episode in which something broke.
        whole: episodes that ended by themselves, whatever they scored.
    """

    about: Mapping[str, str]
    tasks: Mapping[str, Sequence[Sample]]
    passed_over: Mapping[str, str]
    chance: dict[str, float] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=dict)
    whole: int = 0

    @property
    def unfinished(self) -> list[str]:
        return [name for name in self.tasks if name not in self.scores]

    def rows(self) -> list[dict[str, Any]]:
        """One for each finished suite, in the order of the tasks."""
        return [self._row(name) for name in self.tasks if name in self.scores]

    def _row(self, name: str) -> dict[str, Any]:
        score, samples = self.scores[name], self.tasks[name]
        return {
            "suite": name,
            "ability": samples[0].ability,
            "modality": samples[0].modality,
            "correct": score.correct,
            "n": score.n,
            "score": score.value,
            "interval": list(score.interval),
            "chance": self.chance[name],
            "failed": score.failed,
            "failures": self.failures.get(name, []),
            "figures": score.figures,
            **({"kinds": {kind: asdict(found) for kind, found in score.kinds.items()}} if score.kinds else {}),
        }

    def as_json(self) -> str:
        """One line; ``interval`` is the 95% confidence interval of ``score``."""
        told = {"suites": self.rows(), "passed_over": dict(self.passed_over), "unfinished": self.unfinished}
        return json.dumps({**self.about, **told})

    def show(self, console: Console) -> None:
        """The table, and below it what is not in it."""
        rows = self.rows()
        broken = any(row["failed"] for row in rows)
        table = Table(title="held-out tasks", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in ("suite", "ability", "modality"):
            table.add_column(name, no_wrap=True)
        for name in ("correct", "n", "score", "95%", "chance", *(("failed",) if broken else ())):
            table.add_column(name, justify="right", no_wrap=True)
        for row in rows:
            low, high = row["interval"]
            cells = [row["suite"], row["ability"], row["modality"], str(row["correct"]), str(row["n"])]
            cells += [f"{row['score']:.2f}", f"{low:.2f}-{high:.2f}", f"{row['chance']:.2f}"]
            table.add_row(*cells, *((str(row["failed"]),) if broken else ()))
        console.print(table, width=max(console.width, 90))
        for row in rows:
            for line in row["failures"][:FAILURES_SHOWN]:
                say(console, f"failed: {line}")
            if (more := len(row["failures"]) - FAILURES_SHOWN) > 0:
                say(console, f"... and {more} more of {row['suite']}: --json lists all")
        for name, reason in self.passed_over.items():
            say(console, f"passed over: {name}: {reason}")
        if self.unfinished:
            say(console, f"not finished: {', '.join(self.unfinished)}")


class Reporter:
    """A ``model.evals.scorer.Watch`` that keeps the results and shows progress; use it as a context manager."""

    def __init__(self, results: Results, console: Console) -> None:
        self._results, self._console = results, console
        self._began = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("episodes", total=sum(map(len, results.tasks.values())))

    def __enter__(self) -> Reporter:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def ended(self, suite: Suite, episode: Episode) -> None:
        self._bar.advance(self._task)
        self._results.whole += episode.finish_reason != FAILED
        if episode.failure:
            self._results.failures.setdefault(suite.name, []).append(episode.failure)

    def finished(self, suite: Suite, episodes: Sequence[Episode]) -> None:
        results = self._results
        score = results.scores[suite.name] = summarise(results.tasks[suite.name], episodes)
        broken = f", {score.failed} failed" if score.failed else ""
        done, of, seconds = len(results.scores), len(results.tasks), time.monotonic() - self._began
        say(self._console, f"{suite.name}: {score.correct} of {score.n} correct{broken} ({done}/{of}, {seconds:.0f} s)")


def say(console: Console, line: str) -> None:
    """Print a line unchanged: rich would take parts of a path or an answer for markup."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)
