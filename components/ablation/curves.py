"""The curves of an ablation's arms while they trained, for its page (ours)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from components.runtime.pages.charts import Points

Events = Mapping[str, Sequence[Mapping[str, float]]]
"""Task name -> rows of its ``metrics.jsonl``."""


def curves(events: Events, step: str, arms: Iterable[str], metric: str) -> dict[str, Points]:
    """Arm -> the mean over its seeds of ``metric`` at each step of training that all of them have.

    Args:
        step: of the pipeline; its tasks are named ``<step>-<arm>-<seed>``.
        arms: in the order of the curves. Those of which nothing was published are left out.
    """
    found: dict[str, Points] = {}
    for name in arms:
        runs = [
            {row["step"]: row[metric] for row in rows if metric in row}
            for task, rows in events.items()
            if task.startswith(f"{step}-{name}-")
        ]
        if runs:
            common = sorted(set.intersection(*(set(run) for run in runs)))
            found[name] = [(at, fmean(run[at] for run in runs)) for at in common]
    return found


def curves_of_seeds(events: Events, step: str, arm: str, metric: str) -> dict[str, Points]:
    """``seed 1`` -> ``metric`` of one arm's task over the steps of its training, the seeds in order."""
    begin = f"{step}-{arm}-"
    seeds = sorted(int(rest) for task in events if (rest := task.removeprefix(begin)) != task and rest.isdecimal())
    found = {
        f"seed {seed}": [(row["step"], row[metric]) for row in events[f"{begin}{seed}"] if metric in row]
        for seed in seeds
    }
    return {name: points for name, points in found.items() if points}
