"""The tasks that a user names, opened together: prompts, and episodes scored by the user's verifiers (source: ours)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType

from model.data.samples.sample import Sample
from model.rl.environment import Episode, judged, with_verdict
from model.rl.tasks.process import TaskProcess
from model.rl.tasks.task import TaskSample
from model.rl.tools.toolset import Toolset

FEW = 4
"""Failures of a task that are always passed over singly (ours)."""


def too_many(failed: int, asked: int, allowed: float) -> bool:
    """Whether a task of which ``failed`` episodes of ``asked`` have failed is to be passed over as a whole.

    Args:
        allowed: the share that may fail.
    """
    return failed > FEW and failed > allowed * asked


class OwnTasks:
    """A user's tasks, each in its process. Use it as a context manager; iterating gives the tasks in their order.

    Args:
        names: ``module:name`` of each.

    Raises:
        MoonflowError: there is no such task, or it is none.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._tasks: dict[str, TaskProcess] = {}
        with ExitStack() as opened:
            for name in names:
                self._tasks[name] = TaskProcess(name)
                opened.callback(self._tasks[name].close)
            self._opened = opened.pop_all()

    def __enter__(self) -> OwnTasks:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._opened.close()

    def __iter__(self) -> Iterator[TaskProcess]:
        return iter(self._tasks.values())

    def __getitem__(self, name: str) -> TaskProcess:
        return self._tasks[name]

    async def scored(self, episode: Episode, sample: Sample, toolset: Toolset) -> Episode:
        """The episode with its reward, by the user's verifier or by ours; no answer earns 0.

        Raises:
            TaskFailure: the user's verifier gives no verdict.
        """
        if not isinstance(sample, TaskSample):
            return await judged(episode, sample, toolset)
        if sample.judged_by:
            return await judged(episode, replace(sample, reward=sample.judged_by), toolset)
        if episode.finish_reason != "answer":
            return episode
        return with_verdict(episode, await self._tasks[sample.reward].verdict(sample, episode.response))
