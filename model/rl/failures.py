"""What becomes of an episode that breaks: an episode with a reason, which is counted and trains nothing (ours).

A tool, a verifier, a sample, one answer of the engine may break in ways that nobody foresaw. None of them is worth the
other episodes of a step, so the step goes on without this one - until more have failed than its share allows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Iterable, Sequence
from dataclasses import dataclass

from model.data.sample import Sample
from model.errors import MoonflowError, Unavailable
from model.foreign_text import well_formed
from model.rl.environment import FAILED, Episode

log = logging.getLogger(__name__)

LINE = 300  # characters of a failure that are kept
NAMED = 3  # failures of one round of episodes that are logged one by one


async def attempt(episode: Awaitable[Episode], sample: Sample) -> Episode:
    """The episode, or in its place one that says in one line why it failed.

    Raises:
        Unavailable: what all episodes need is gone.
        CancelledError: this task is cancelled.
    """
    try:
        return await episode
    except (Unavailable, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except asyncio.CancelledError as error:  # of this task; or of something that it waited for, which is a failure
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise
        return _failed(sample, error)
    except BaseException as error:  # panics of Rust libraries are no Exception
        return _failed(sample, error)


def _failed(sample: Sample, error: BaseException) -> Episode:
    kind = "" if isinstance(error, MoonflowError) else f"{type(error).__name__}: "
    try:
        said = str(error)
    except Exception:
        said = "(its message cannot be shown)"
    line = well_formed(" ".join(f"{sample.family}/{sample.key}: {kind}{said}".split())[:LINE])
    log.info("episode failed: %s", line, exc_info=error)
    return Episode([], [], [], None, [], 0.0, "", 0, FAILED, failure=line)


async def all_of(episodes: Iterable[Coroutine[None, None, Episode]]) -> list[Episode]:
    """Episodes at the same time, in their order; where one raises, as `attempt` may, the others are cancelled first."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(episode) for episode in episodes]
    except BaseExceptionGroup as raised:
        error = raised.exceptions[0]
        raise error from error.__cause__
    return [task.result() for task in tasks]


@dataclass
class FailureCount:
    """The failed episodes of a run.

    Attributes:
        allowed: share of them that may fail.   planned: how many episodes the run has, also those that are to come.
        count: how many have failed so far.   first: why the first of them did.
    """

    allowed: float
    planned: int
    count: int = 0
    first: str = ""

    def add(self, episodes: Sequence[Episode]) -> int:
        """Count the failures among some episodes and log the first of them; returns how many there were.

        Raises:
            MoonflowError: more have failed than the share allows.
        """
        failures = [episode.failure for episode in episodes if episode.failure]
        for failure in failures[:NAMED]:
            log.warning("an episode failed: %s", failure)
        if len(failures) > NAMED:
            log.warning("and %d more of these %d episodes", len(failures) - NAMED, len(episodes))
        self.count += len(failures)
        self.first = self.first or next(iter(failures), "")
        if self.count > self.allowed * self.planned:
            raise MoonflowError(
                f"{self.count} of {self.planned} episodes failed, more than the share max_failed_episodes = "
                f"{self.allowed:g}; the first: {self.first}; mend its cause, or raise max_failed_episodes"
            )
        return len(failures)
