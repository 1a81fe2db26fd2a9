"""The judge's part of a reward, on top of the verifiable one (source: K2.5 paper, which has generative reward models on
top of verifiable rewards and several alternative rubrics against reward hacking; the forms are ours).

How the two combine: reward = v + weight * j if the verifiable reward v is full, else v. Here j in [0, 1] is how far the
answer meets a rubric. So the worst right answer earns 1 and a wrong one less than 1, whatever the judge says of either
and whatever the weight is: a judge ranks right answers among themselves, and cannot be talked into lifting a wrong one
over them. A plain sum could do that for every weight above the least gap between two verifiable rewards.

A task's ``rubric`` has an alternative on each line. An episode is judged by one of them, which its own seed draws. The
policy cannot tell which, so it pays to satisfy them all; one fixed rubric can be farmed at the cost of the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from model.boundary.errors import Unavailable
from model.boundary.untrusted_text import shown
from model.data.families.judging import satisfied
from model.data.samples.sample import Sample
from model.rl.environment import Episode, Scoring, derive_seed
from model.rl.failures import NAMED
from model.rl.judges.judge import Judge, Judgement
from model.rl.tools.toolset import Toolset

log = logging.getLogger(__name__)

DRAW = 0x1D6E  # tells the seed of the draw from those of an episode's turns
VERIFIABLE, JUDGED, UNREAD, SATISFIED = "reward/verifiable", "reward/judge", "judge/unread", "judge/satisfied"
FIGURES = (VERIFIABLE, JUDGED, UNREAD, SATISFIED)
"""Names of a judged episode's figures, which are means per round: the verifiable reward; the judge's score of the
answers that it judged; the share of its verdicts that could not be read; and, where a program knows it, the share of a
right answer's wishes that are truly fulfilled (``model.data.families.judging``)."""


def combined(verifiable: float, score: float | None, weight: float) -> float:
    """The reward of an answer; ``score``: the judge's, None if there is none. See the module's text."""
    return verifiable + weight * score if verifiable >= 1.0 and score is not None else verifiable


def alternatives(sample: Sample) -> list[str]:
    """The alternative rubrics of a task, one from each line that is not empty."""
    return [line.strip() for line in sample.rubric.splitlines() if line.strip()]


def drawn_rubric(sample: Sample, seed: int, several: bool) -> str:
    """The rubric for the episode with this seed; not ``several``: always the first. The task must have one."""
    rubrics = alternatives(sample)
    return rubrics[derive_seed(seed, DRAW) % len(rubrics)] if several else rubrics[0]


def question_of(sample: Sample) -> str:
    """What a judge reads of a task: all that its system and user say; a picture is "[image]"."""
    return "\n".join(_said(sample))


def _said(sample: Sample) -> Iterator[str]:
    for message in sample.messages:
        if message.get("role") in ("system", "user"):
            content = message.get("content") or ""
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            yield " ".join(part.get("text", f"[{part['type']}]") for part in parts)


@dataclass
class JudgedReward:
    """A ``model.rl.environment.Scoring`` that lets a judge score right answers to tasks that have rubrics.

    Attributes:
        verify: gives the verifiable reward.
        weight: of the judge's score.
        several: whether an episode is judged by a drawn one of the rubrics, or always by the first.
        warn: is told, once, that the judge is gone.
        unread: verdicts of this process that could not be had or read. Each gives no reward of the judge; the first
            ones are named in the log.
    """

    judge: Judge
    verify: Scoring
    weight: float
    several: bool = True
    warn: Callable[[str], None] = log.warning
    unread: int = 0
    gone: bool = False

    async def __call__(self, episode: Episode, sample: Sample, toolset: Toolset) -> Episode:
        """The episode with its reward.

        A judge that is gone gives no verdict, as one that cannot be read: were the episode to fail instead, the round
        would lose right answers alone. Raises what ``verify`` raises.
        """
        episode = await self.verify(episode, sample, toolset)
        figures = {VERIFIABLE: episode.reward}
        if not episode.correct or not alternatives(sample):
            return replace(episode, metrics=episode.metrics | figures)
        found = await self._judgement(episode, sample)
        figures[UNREAD] = float(found.score is None)
        if found.score is not None:
            figures[JUDGED] = found.score
        if wishes := satisfied(sample, episode.response):
            figures[SATISFIED] = sum(wishes) / len(wishes)
        reward = combined(episode.reward, found.score, self.weight)
        return replace(episode, reward=reward, metrics=episode.metrics | figures)

    async def _judgement(self, episode: Episode, sample: Sample) -> Judgement:
        rubric = drawn_rubric(sample, episode.seed, self.several)
        try:
            found = await self.judge.meets(question_of(sample), episode.response, rubric)
        except Unavailable as error:
            found = Judgement(None, shown(str(error)))
            if not self.gone:
                self.gone = True
                self.warn(f"the judge was gone for a while, and right answers then earned no reward of it: {error}")
        if found.score is None:
            self.unread += 1
            level = logging.WARNING if self.unread <= NAMED else logging.INFO
            log.log(level, "there is no verdict on %s/%s: %s", sample.family, sample.key, found.unread)
        return found
