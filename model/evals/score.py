"""Scores: what became of each task of a suite, and the figures over all of them (source: ours).

A score is strict accuracy where an answer is right or wrong (exact strings, numbers), and the reward itself where it
measures closeness (OCR edit distance, box overlap, table F1, the share of tests that a program passes).

The outcomes of more tasks of a suite are appended to those that are there; the score of all is then the same, to the
bit, as if they had been measured at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from model.data.families.programs import kind_of
from model.data.samples.sample import Sample
from model.rl.environment import FAILED, Episode
from model.swarm.orchestrator import SECONDS

STRICT = ("exact", "last_line", "number", "says")  # rewards whose score is accuracy
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Outcome:
    """What became of one task.

    Attributes:
        value: its score, from 0 to 1; 0 without an answer.
        answered: whether its episode ended with an answer.
        tokens: sampled in it.
        failure: what broke in it, in one line (`model.rl.failures`); "" if nothing did.
        metrics: what its environment measured; None if what broke ended the episode.
        called: whether it called a tool.
        kind: of a task of image programs, its kind; "" of another.
    """

    value: float
    answered: bool
    tokens: int
    failure: str = ""
    metrics: dict[str, float] | None = field(default_factory=dict)
    called: bool = False
    kind: str = ""


@dataclass(frozen=True)
class KindScore:
    """The score of one kind of image program.

    Attributes:
        value: mean score over its tasks.
        tool_calls: share of its episodes that called a tool.
        n: number of its tasks.
    """

    value: float
    tool_calls: float
    n: int


@dataclass(frozen=True)
class Score:
    """The score of one suite.

    Attributes:
        value: mean score over the tasks.
        stderr: its standard error.
        n: number of tasks.
        correct: tasks whose answer is right, strictly; of a score that measures closeness, those with the full score.
        interval: 95% confidence interval of the value.
        kinds: of a suite of image programs, the score of each kind that has tasks, in the order of its first task.
        answered: share of episodes that ended with an answer.
        tokens: tokens sampled in all episodes.
        tool_calls: share of the episodes that called a tool.
        failed: episodes in which something broke (`model.rl.failures`); if that ended the episode, it scores 0.
        figures: means, over the other episodes, of what the environment measured, e.g. a swarm's ``critical_steps``.
    """

    value: float
    stderr: float
    n: int
    answered: float
    tokens: int
    failed: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    correct: int = 0
    interval: tuple[float, float] = (0.0, 1.0)
    tool_calls: float = 0.0
    kinds: dict[str, KindScore] = field(default_factory=dict)


def outcome_of(sample: Sample, episode: Episode) -> Outcome:
    """What became of a task."""
    # Seconds differ from one run to the next, and a score is the same each time.
    measured = {name: value for name, value in episode.metrics.items() if name != SECONDS}
    return Outcome(
        value=task_score(sample, episode),
        answered=episode.finish_reason == "answer",
        tokens=episode.policy_tokens,
        failure=episode.failure,
        metrics=None if episode.finish_reason == FAILED else measured,
        called=episode.metrics.get("tool_calls", 0.0) > 0,
        kind=kind_of(sample),
    )


def summarise(samples: Sequence[Sample], episodes: Sequence[Episode]) -> Score:
    """The score of a suite from its tasks and their episodes, which are in the same order."""
    return score_of([outcome_of(sample, episode) for sample, episode in zip(samples, episodes, strict=True)])


def score_of(outcomes: Sequence[Outcome]) -> Score:
    """The score of a suite from what became of its tasks, in their order."""
    values, n = [one.value for one in outcomes], len(outcomes)
    measured = [one.metrics for one in outcomes if one.metrics is not None]
    names = sorted({name for metrics in measured for name in metrics})
    return Score(
        value=sum(values) / n,
        stderr=standard_error(values),
        n=n,
        answered=sum(one.answered for one in outcomes) / n,
        tokens=sum(one.tokens for one in outcomes),
        failed=sum(bool(one.failure) for one in outcomes),
        figures={name: sum(m.get(name, 0.0) for m in measured) / len(measured) for name in names},
        correct=sum(value == 1.0 for value in values),
        interval=interval(values),
        tool_calls=sum(one.called for one in outcomes) / n,
        kinds=_by_kind(outcomes),
    )


def task_score(sample: Sample, episode: Episode) -> float:
    """The score of one task, from 0 to 1; 0 without an answer."""
    return value_of(sample, episode.reward)


def value_of(sample: Sample, reward: float) -> float:
    """What an answer with this reward counts for in a score."""
    return float(reward >= 1.0) if sample.reward in STRICT else reward


def _by_kind(outcomes: Sequence[Outcome]) -> dict[str, KindScore]:
    groups: dict[str, list[Outcome]] = {}
    for one in outcomes:
        if one.kind:
            groups.setdefault(one.kind, []).append(one)
    found = {}
    for kind, group in groups.items():
        n = len(group)
        found[kind] = KindScore(sum(one.value for one in group) / n, sum(one.called for one in group) / n, n)
    return found


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean of n values.

    sqrt(p (1 - p) / n) for zeros and ones with mean p, else the sample standard deviation / sqrt(n); 0 for n = 1.
    """
    n = len(values)
    mean = sum(values) / n
    if all(value in (0.0, 1.0) for value in values):
        return math.sqrt(mean * (1 - mean) / n)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, n - 1) / n)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95% confidence interval of the mean of values in [0, 1].

    Wilson's score interval for zeros and ones, and for values that are all alike, where it is not empty; else Student's
    t, cut to [0, 1]. Values in [0, 1] vary at most as zeros and ones of the same mean do, so Wilson's is wide enough.
    """
    from scipy.stats import norm, t  # type: ignore[import-untyped]  # a second, which few callers need

    n, mean = len(values), sum(values) / len(values)
    binary = all(value in (0.0, 1.0) for value in values)
    if n == 1 and not binary:
        return 0.0, 1.0
    if binary or math.isclose(min(values), max(values)):
        z = float(norm.ppf((1 + CONFIDENCE) / 2))
        middle, scale = mean + z**2 / (2 * n), 1 + z**2 / n
        half = z * math.sqrt(mean * (1 - mean) / n + z**2 / (4 * n**2))
        return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * standard_error(values)
    return max(0.0, mean - half), min(1.0, mean + half)
