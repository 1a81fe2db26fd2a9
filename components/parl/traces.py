"""Traces of PARL's episodes: of some rounds, the best and the worst one, as artifacts of the step's run (source: ours).

At most ROUNDS rounds are shown, of those after which the state is saved, and two episodes of each. So a step keeps at
most 2 * ROUNDS traces, however long it runs; `components.runtime.pages.trace_files` bounds the bytes of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from components.runtime.pages.trace_files import trace_files
from components.runtime.step import StepContext
from model.rl.groups import Group
from model.rl.trainer import RLSettings
from model.swarm.orchestrator import SwarmEpisode
from model.swarm.reward import SwarmReward
from model.swarm.trace import Trace

ROUNDS = 10


def shown_rounds(settings: RLSettings) -> list[int]:
    """The rounds whose episodes are shown, the first round of all being 1: evenly spread, the last one among them."""
    saved = [t for t in range(1, settings.iterations + 1) if settings.saves(t)]
    apart = -(-len(saved) // ROUNDS)
    return saved[::-1][::apart][::-1]


class RoundTraces:
    """Keeps traces of the rounds that are shown. It is a `model.rl.trainer.Watch`."""

    def __init__(self, context: StepContext, settings: RLSettings, reward: SwarmReward) -> None:
        self._context, self._reward, self._rounds = context, reward, frozenset(shown_rounds(settings))

    def carried(self, t: int, episode: SwarmEpisode) -> SwarmEpisode:
        """The episode of round ``t``, without its trace if that is not shown: ranks send episodes to each other."""
        return episode if t in self._rounds else replace(episode, trace=None)

    def __call__(self, t: int, groups: Sequence[Group]) -> None:
        if t not in self._rounds or not self._context.ranks.first:
            return
        traces = [trace for group in groups for trace in self._traces(t, group)]
        if not traces:
            return
        ranked = sorted(traces, key=lambda trace: trace.parts["trained"])
        shown = {"best": ranked[-1]} | ({"worst": ranked[0]} if len(ranked) > 1 else {})
        for name, trace in shown.items():
            about = {"step": self._context.step, "round": str(t), "which": f"{name} of {len(ranked)}"}
            told = trace.model_copy(update={"about": about | trace.about})
            for path, text in trace_files(f"round-{t:04d}-{name}", told).items():
                self._context.log_file(path, text)

    def _traces(self, t: int, group: Group) -> Iterable[Trace]:
        """With what is trained on, the weighted sum of all parts."""
        for episode in group.episodes:
            if isinstance(episode, SwarmEpisode) and (trace := episode.trace) is not None:
                parts = trace.parts | {"trained": self._reward(t - 1, episode)[0]}
                yield trace.model_copy(update={"parts": parts})
