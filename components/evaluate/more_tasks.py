"""More tasks for the suites that decide a floor of the gate, where their score is too uncertain to tell (ours).

64 tasks cannot tell 0.87 from 0.95. A suite whose interval holds a floor gets STRIDE more tasks, and again, until the
floor lies outside or there are no more tasks. The outcome of each task is kept, so that the score is that of all tasks
measured at once, and an attempt that is killed loses one round.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from components.evaluate.config import Config
from components.runtime.step import StepContext
from model.data.batches.folder import DataFolder
from model.data.samples.sample import Sample
from model.evals.own_suites import own_prompts
from model.evals.score import Outcome, score_of
from model.evals.suites import Suite, readable
from model.rl.tasks.own_tasks import OwnTasks
from model.rl.tasks.process import TaskFailure

OUTCOMES = "outcomes.json"
STRIDE = 128  # tasks of a suite of share 1: they fill the engine's batch once (ours)
Outcomes = dict[str, list[Outcome]]
"""Suite -> what became of the final checkpoint's tasks, in their order."""


def outcomes_before(partial: Path | None) -> Outcomes:
    """What an earlier attempt has measured of the final checkpoint."""
    path = None if partial is None else partial / OUTCOMES
    told = json.loads(path.read_text()) if path is not None and path.is_file() else {}
    return {name: [Outcome(**one) for one in part] for name, part in told.items()}


def write_outcomes(folder: Path, outcomes: Outcomes) -> None:
    """Nothing is written before the final checkpoint is measured."""
    if outcomes:
        told = {name: [asdict(one) for one in part] for name, part in outcomes.items()}
        (folder / OUTCOMES).write_text(json.dumps(told) + "\n")


class MoreTasks:
    """The tasks that follow the first ``samples`` of a suite, up to ``samples_at_floor``."""

    def __init__(self, config: Config, context: StepContext, data: DataFolder, own: OwnTasks) -> None:
        self._config, self._context, self._data = config, context, data
        self._own = {task.short_name: task for task in own}
        self._prompts: dict[str, Sequence[Sample]] = {}

    def next_round(self, suites: Sequence[Suite], outcomes: Outcomes) -> dict[str, Sequence[Sample]]:
        """Suite name -> its next tasks, of the suites that have any."""
        found = {suite.name: self._next(suite, len(outcomes[suite.name])) for suite in suites}
        return {name: tasks for name, tasks in found.items() if tasks}

    def _next(self, suite: Suite, have: int) -> Sequence[Sample]:
        end = min(have + suite.tasks(STRIDE), suite.tasks(self._config.samples_at_floor))
        if have >= end:
            return []
        if suite.name in self._own:
            return self._own_prompts(suite.name)[have:end]
        return [suite.task(sample) for sample in islice(readable(self._data, suite.family), have, end)]

    def _own_prompts(self, name: str) -> Sequence[Sample]:
        if name not in self._prompts:
            config = self._config
            try:
                self._prompts[name] = own_prompts(self._own[name], config.samples_at_floor, config.max_failed_episodes)
            except TaskFailure as failure:
                self._context.warn(f"{name} is measured on {config.samples} tasks, and not on more: {failure}")
                self._prompts[name] = []
        return self._prompts[name]


def as_scores(outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, dict[str, Any]]:
    """Suite -> its `model.evals.score.Score` in JSON's terms."""
    return {name: asdict(score_of(part)) for name, part in outcomes.items()}
