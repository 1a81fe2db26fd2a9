"""Episodes that break: each is counted, says why, and is not trained on (source: ours).

A tool, a verifier, a sample or one answer of the engine may break in ways that nobody foresaw. That must not cost the
other episodes of a step, so the step continues without the broken one, until more have failed than the allowed share.

A sub-agent that breaks fails no episode: it is an observation of its orchestrator, which can go on without it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

from model.boundary.errors import MoonflowError, Unavailable
from model.boundary.untrusted_text import well_formed
from model.data.samples.sample import Sample
from model.rl.environment import FAILED, Episode

log = logging.getLogger(__name__)

LINE = 300  # characters of a failure that are kept
NAMED = 3  # failures of one round that are logged one by one
ASKED, LOST = "subtasks_assigned", "sub_agents_failed"
"""Figures of an episode that may have sub-agents: how many were asked, and how many of these broke."""
MANY = 0.5  # share of a round's episodes with sub-agents that may lose all of them without a warning (ours)


async def attempt(episode: Awaitable[Episode], sample: Sample) -> Episode:
    """Wait for an episode; if it raises, return a failed episode that says why in one line.

    Raises:
        Unavailable: something that all episodes need is gone.
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
    except BaseException as error:  # a panic of a Rust library is not an Exception
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


@dataclass
class FailureCount:
    """The failed episodes of a run.

    Attributes:
        allowed: the share of the run's episodes that may fail.
        planned: episodes of the whole run, future ones included.
        count: how many have failed so far.
        first: why the first of them failed.
    """

    allowed: float
    planned: int
    count: int = 0
    first: str = ""

    def add(self, episodes: Sequence[Episode]) -> int:
        """Count the failures among ``episodes`` and log the first of them; returns their number.

        Raises:
            MoonflowError: more episodes of the run have failed than allowed.
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
                f"{self.allowed:g}; the first: {self.first}; fix its cause, or raise max_failed_episodes"
            )
        return len(failures)


def warn_of_lost_sub_agents(episodes: Sequence[Episode]) -> None:
    """Log a warning where in more than MANY of the episodes that asked sub-agents each of these broke.

    Such a round teaches and measures what an orchestrator does alone.
    """
    asked = [episode for episode in episodes if episode.metrics.get(ASKED)]
    alone = [episode for episode in asked if episode.metrics.get(LOST, 0.0) >= episode.metrics[ASKED]]
    if alone and len(alone) > MANY * len(asked):
        why = next((episode.lost for episode in alone if episode.lost), "")
        log.warning(
            "all sub-agents broke in %d of %d episodes that asked some; the first: %s", len(alone), len(asked), why
        )
