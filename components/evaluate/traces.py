"""Traces of held-out wide searches, by a single agent and by a swarm, as artifacts of the step's run (source: ours).

They are kept of the checkpoints that the gallery compares, at most three, and EPISODES of each suite: so a step keeps
at most 12 traces; `components.runtime.pages.trace_files` bounds the bytes of each.
"""

from __future__ import annotations

from collections.abc import Sequence

from components.runtime.pages.trace_files import trace_files
from components.runtime.step import StepContext
from model.evals.scorer import Watch
from model.evals.suites import Suite
from model.rl.environment import Episode
from model.swarm.orchestrator import SwarmEpisode

EPISODES = 2  # of a suite, the first ones


class TracedWatch:
    """Keeps the traces of one checkpoint and tells ``then`` everything (`model.evals.scorer.Watch`)."""

    def __init__(self, context: StepContext, step: str, then: Watch) -> None:
        self._context, self._step, self._then = context, step, then

    def ended(self, suite: Suite, episode: Episode) -> None:
        self._then.ended(suite, episode)

    def finished(self, suite: Suite, episodes: Sequence[Episode]) -> None:
        self._then.finished(suite, episodes)
        for number, episode in enumerate(episodes[:EPISODES]):
            if isinstance(episode, SwarmEpisode) and (trace := episode.trace) is not None:
                about = {"checkpoint": self._step, "suite": suite.name} | trace.about
                told = trace.model_copy(update={"about": about})
                for path, text in trace_files(f"{self._step}-{suite.name}-{number}", told).items():
                    self._context.log_file(path, text)
