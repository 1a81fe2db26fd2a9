"""Prompts for RL from a user's tasks and from the data, each in its share; a broken task is passed over (source: ours).

Which source the n-th prompt comes from, and which of its prompts it is, follow from the shares, n, and what was passed
over at which prompt; so a run that was killed continues with the prompts that it would have had.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from model.boundary.errors import MoonflowError
from model.data.samples.sample import Sample
from model.parallel.ranks import Ranks
from model.rl.environment import Episode
from model.rl.failures import NAMED
from model.rl.tasks.names import short_name
from model.rl.tasks.own_tasks import OwnTasks, too_many
from model.rl.tasks.process import TaskFailure
from model.rl.tasks.task import TaskSample

log = logging.getLogger(__name__)

DATA = ""
"""The name of the data among the sources."""
TRIES = 4  # prompts one after the other that a task may fail to make (ours)


class DataPrompts(Protocol):
    def __getitem__(self, n: int) -> Sample: ...


class TaskMixture:
    """``mixture[n]`` is the n-th prompt of the run. Every rank asks for it; the first one makes those of tasks.

    A prompt that cannot be made is passed over for the next one of its task. A task of which TRIES prompts in a row
    cannot be made, or too many verdicts fail (`too_many`), is passed over for the rest of the run.

    Args:
        shares: name of a task -> its share of the prompts, above 0; what is left goes to ``data``.
        data: prompts of the data; None if nothing is left for it.
        seed: of the tasks' prompts and their order.
        allowed: share of a task's episodes that may fail.
        warn: is told, in one line, of each task that is passed over.
    """

    def __init__(
        self,
        tasks: OwnTasks,
        shares: Mapping[str, float],
        data: DataPrompts | None,
        *,
        seed: int,
        allowed: float,
        ranks: Ranks,
        warn: Callable[[str], None],
    ) -> None:
        self._tasks, self._data, self._seed, self._ranks = tasks, data, seed, ranks
        self._allowed, self._warn = allowed, warn
        rest = {DATA: 1 - sum(shares.values())} if data is not None else {}
        self._shares = {**shares, **rest}
        self._passed_over: dict[str, list[Any]] = {}  # name -> first prompt without it, and why
        self._failed, self._asked = Counter[str](), Counter[str]()  # episodes of the run
        self._unmade = Counter[str]()  # prompts of this round that this rank could not make
        self._schedule: list[tuple[str, int]] = []
        self._plan()

    def __getitem__(self, n: int) -> Sample:
        """Raises MoonflowError: every source is passed over, or the data's prompt cannot be read."""
        while True:
            name, number = self._place(n)
            if name == DATA:
                assert self._data is not None
                return self._data[number]
            found = self._prompt(name, number) if self._ranks.first else None
            if self._ranks.world > 1:  # the ranks might not agree on what hangs, which is a matter of time
                found = self._ranks.gather(found)[0]
            if isinstance(found, TaskSample):
                return found
            self._pass_over(name, n, str(found))

    def account(
        self, samples: Sequence[Sample], episodes: Sequence[Sequence[Episode]], until: int
    ) -> tuple[list[Episode], dict[str, float]]:
        """Count the failed episodes of each task, and pass over those that have too many from prompt ``until`` on.

        Args:
            episodes: of each sample.

        Returns:
            The episodes of the data, for which no task is at fault, and of the round ``episodes/failed/<task>`` and, on
            the first rank, ``prompts/failed/<task>``.
        """
        others: list[Episode] = []
        figures = {f"prompts/failed/{short_name(name)}": float(count) for name, count in self._unmade.items()}
        self._unmade.clear()
        first: dict[str, str] = {}
        for sample, played in zip(samples, episodes, strict=True):
            if not isinstance(sample, TaskSample):
                others += played
                continue
            name, lines = sample.reward, [episode.failure for episode in played if episode.failure]
            self._asked[name] += len(played)
            self._failed[name] += len(lines)
            key = f"episodes/failed/{sample.family}"
            figures[key] = figures.get(key, 0.0) + len(lines)
            if lines:
                first.setdefault(name, lines[0])
            for line in lines[:NAMED]:
                log.warning("an episode failed: %s", line)
        for name, line in first.items():
            if name not in self._passed_over and too_many(self._failed[name], self._asked[name], self._allowed):
                counted = f"{self._failed[name]} of its {self._asked[name]} episodes failed"
                self._pass_over(name, until, f"{counted}, of the last round first {line}")
        for task in self._tasks:
            task.forgive()
        return others, figures

    def state(self) -> dict[str, Any]:
        """What a run that continues needs, in JSON's terms."""
        return {"passed_over": self._passed_over, "failed": dict(self._failed), "asked": dict(self._asked)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`."""
        self._passed_over = dict(state["passed_over"])
        self._failed, self._asked = Counter(state["failed"]), Counter(state["asked"])
        self._plan()

    def _prompt(self, name: str, number: int) -> TaskSample | str:
        """A prompt of a task, or why the task has none."""
        task, last = self._tasks[name], ""
        count = task.about.counts["train"]
        if count == 0:
            return "it has no prompts to train on: count('train') is 0"
        for index in range(number, number + TRIES):
            if count is not None:
                index = int(_order(self._seed, count, index // count)[index % count])
            try:
                return task.prompt(self._seed, "train", index)
            except TaskFailure as failure:
                log.warning("prompt %d is passed over: %s", index, failure)
                self._unmade[name] += 1
                last = str(failure)
        return f"{TRIES} prompts in a row cannot be made; the last: {last}"

    def _pass_over(self, name: str, n: int, why: str) -> None:
        self._passed_over[name] = [n, why]
        self._plan()
        if self._ranks.first:
            line = f"task {name} is passed over from prompt {n} on: {why}"
            log.warning("%s", line)
            self._warn(line)

    def _plan(self) -> None:
        self._schedule.clear()
        self._credit = dict.fromkeys(self._shares, 0.0)
        self._drawn = Counter[str]()

    def _place(self, n: int) -> tuple[str, int]:
        """The source of the n-th prompt, and which of its prompts this is.

        At each prompt every source gets its share as credit, and the one with the most pays for the prompt.
        """
        while len(self._schedule) <= n:
            now = len(self._schedule)
            live = {
                name: share
                for name, share in self._shares.items()
                if name not in self._passed_over or now < self._passed_over[name][0]
            }
            if not live:
                reasons = "; ".join(f"{short_name(name)}: {why}" for name, (_, why) in self._passed_over.items())
                raise MoonflowError(f"no task is left to train on: {reasons}")
            for name, share in live.items():
                self._credit[name] += share
            chosen = max(live, key=lambda name: round(self._credit[name], 9))
            self._credit[chosen] -= sum(live.values())
            self._schedule.append((chosen, self._drawn[chosen]))
            self._drawn[chosen] += 1
        return self._schedule[n]


@lru_cache(maxsize=64)
def _order(seed: int, count: int, epoch: int) -> np.ndarray:
    """A seeded order of ``count`` prompts, another one each time that all have been asked."""
    return np.random.default_rng((seed, epoch)).permutation(count)
