"""What the runs of ``moonflow seeds`` ended with, one by one and together."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from model.boundary.errors import MoonflowError
from model.boundary.whole_file import write_whole
from pipelines.seeds.rule import STRIDE

RESULT = "result.json"
"""In a run's folder, written when the run has ended."""
TOGETHER = "seeds.json"
"""In the folder of all runs: what ``compare`` returns."""
STATES = ("promoted", "passed", "held", "failed", "unfinished")


@dataclass(frozen=True)
class SeedRun:
    """One run.

    Attributes:
        number: i of the rule: its seeds are the profile's plus 1000 * i.
        state: one of ``STATES``; held: the gate refused; passed: it did not, and the pipeline promotes nothing.
        why: the failed step's line, or the gate's rules that did not hold.
        seconds: of all calls that worked on it together; None while it is unfinished.
        seeds: by step.
        scores: a row per suite for the final model: suite, ability, modality, value, stderr, n (tasks), chance (score
            of the best constant answer). Empty if the run has not got that far.
    """

    number: int
    state: str
    seeds: Mapping[str, int]
    why: Sequence[str] = ()
    seconds: float | None = None
    scores: Sequence[Mapping[str, Any]] = field(default=())

    @property
    def complete(self) -> bool:
        """Whether it got to its end; a later call goes on with any other."""
        return self.state in ("promoted", "passed", "held")


def ended(run_dir: Path, number: int, seeds: Mapping[str, int], error: str, began: float) -> SeedRun:
    """The result of a run that has just ended, from what ``finish`` wrote into its folder.

    Args:
        error: why it failed; "" if it did not.
        began: when this call began it, on the monotonic clock.
    """
    told: dict[str, Any] = {"summary.json": {}, "events.json": {"extra": {}}}
    for name in told:
        with suppress(OSError, ValueError):  # a run may fail before finish
            told[name] = json.loads((run_dir / name).read_text())
    summary, evaluation = told["summary.json"], told["events.json"]["extra"].get("evaluate", {})
    rows = [row for row in evaluation.get("evals", ()) if row["step"] == evaluation["candidate"]]
    if not error and "decision" not in evaluation:
        error = f"it ended without a decision of the gate; see {run_dir / 'report.html'}"
    why = [str(rule["reason"]) for rule in evaluation.get("rules", ()) if not rule["passed"]]
    let_through = "promoted" if summary.get("promoted") else "passed"
    state = "failed" if error else "held" if evaluation["decision"] == "hold" else let_through
    why = [error] if error else why if state == "held" else []
    return SeedRun(
        number,
        state,
        dict(seeds),
        why,
        summary.get("seconds", round(time.monotonic() - began, 1)),
        [{**row, "chance": evaluation["chance"][row["suite"]]} for row in rows],
    )


def save(run_dir: Path, run: SeedRun) -> None:
    write_whole(run_dir / RESULT, (json.dumps(asdict(run), indent=1) + "\n").encode())


def saved(run_dir: Path) -> SeedRun | None:
    """The result that ``save`` wrote; None if there is none that can be read, and the run is to be continued."""
    with suppress(OSError, ValueError, TypeError):
        return SeedRun(**json.loads((run_dir / RESULT).read_text()))
    return None


def compare(profile: str, runs: Sequence[SeedRun]) -> dict[str, Any]:
    """All runs together.

    Returns:
        ``suites``: for each its mean, sample standard deviation (None for one run) and worst score over the runs that
        measured it, failed ones included; ``worst_run`` is that run's number, ``n`` the tasks of each run.
        ``promoted``, ``passed``, ``held``, ``failed``, ``unfinished``: numbers of runs. ``seconds``: mean and longest
        of the runs that got to their end, and whose the longest was; None without such a run. ``runs``: every
        ``SeedRun``.
    """
    rows = [(run.number, row) for run in runs for row in run.scores]
    kinds = {row["suite"]: (row["ability"], row["modality"]) for _, row in rows}
    order = sorted(kinds, key=lambda suite: (kinds[suite], suite))
    taken = {run.number: run.seconds for run in runs if run.complete and run.seconds is not None}
    return {
        "profile": profile,
        "stride": STRIDE,
        "suites": [_over_runs([(number, row) for number, row in rows if row["suite"] == suite]) for suite in order],
        **{state: [run.number for run in runs if run.state == state] for state in STATES},
        "seconds": {
            "mean": fmean(taken.values()),
            "longest": max(taken.values()),
            "longest_run": max(taken, key=lambda number: taken[number]),
        }
        if taken
        else None,
        "runs": [asdict(run) for run in runs],
    }


def _over_runs(rows: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """One suite over the runs that measured it."""
    values = [float(row["value"]) for _, row in rows]
    worst, number = min((float(row["value"]), number) for number, row in rows)
    first = rows[0][1]
    return {
        **{name: first[name] for name in ("suite", "ability", "modality")},
        "chance": fmean(row["chance"] for _, row in rows),
        "mean": fmean(values),
        "sd": stdev(values) if len(values) > 1 else None,
        "worst": worst,
        "worst_run": number,
        "n": [row["n"] for _, row in rows],
    }


def together(folder: Path) -> dict[str, Any]:
    """What ``compare`` returned last for the runs of a folder. MoonflowError if the folder does not say."""
    path = folder / TOGETHER
    try:
        found = json.loads(path.read_text())
        return compare(found["profile"], [SeedRun(**run) for run in found["runs"]])
    except FileNotFoundError:
        raise MoonflowError(f"{folder} has no {TOGETHER}: give the folder of moonflow seeds, or run it first") from None
    except (ValueError, TypeError, KeyError) as error:
        told = f"{path} is damaged ({type(error).__name__}: {error})"
        raise MoonflowError(f"{told}: run moonflow seeds again, which writes it anew") from None


def metrics(found: Mapping[str, Any]) -> dict[str, float]:
    """The figures of ``compare`` as MLflow metrics; a score's are below the name that it has in each run."""
    figures = {f"runs/{state}": float(len(found[state])) for state in STATES}
    if found["seconds"]:
        figures |= {f"seconds/{name}": float(found["seconds"][name]) for name in ("mean", "longest")}
    for suite in found["suites"]:
        name = f"eval/{suite['suite']}/{suite['ability']}/{suite['modality']}"
        figures |= {f"{name}/{what}": suite[what] for what in ("mean", "sd", "worst") if suite[what] is not None}
    return figures
