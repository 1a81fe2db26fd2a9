"""Scores of held-out tasks (source: ours).

All episodes of all suites run at once, and the engine batches them. A score is strict accuracy where an answer is right
or wrong (exact strings, numbers), and the reward itself where it measures closeness (OCR edit distance, box overlap,
table F1, the share of tests that a program passes).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from model.boundary.at_once import all_of
from model.boundary.errors import Unavailable
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.families.programs import kind_of
from model.data.samples.sample import Sample
from model.evals.completion import complete_document
from model.evals.suites import Suite
from model.network.multimodal import KimiK25
from model.network.precision import narrow_products
from model.rl.environment import FAILED, Episode, derive_seed, judged, run_episode
from model.rl.failures import NAMED, FailureCount, attempt
from model.rl.rewards import TESTS
from model.rl.tasks.own_tasks import OwnTasks, too_many
from model.rl.tasks.task import TaskSample
from model.rl.tools.toolset import Toolset
from model.rl.verifier import verify
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import RolloutEngine
from model.swarm.orchestrator import SECONDS, SwarmLimits, run_swarm_episode

log = logging.getLogger(__name__)

STRICT = ("exact", "number")  # rewards whose score is accuracy
CONFIDENCE = 0.95


def measuring_engine(model: KimiK25, max_batch: int) -> EmbeddedEngine:
    """The engine of an evaluation: it reads prompts in bfloat16 as supervised training does, where that is fast."""
    return EmbeddedEngine(model, max_batch, prompt_products=narrow_products(torch.device("cpu")))


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


class Watch(Protocol):
    """What is told of an evaluation while it runs."""

    def ended(self, suite: Suite, episode: Episode) -> None:
        """An episode has ended."""

    def finished(self, suite: Suite, episodes: Sequence[Episode]) -> None:
        """All episodes of a suite have ended; they are in the order of its tasks."""


@dataclass(frozen=True)
class Evaluation:
    """How the episodes of an evaluation are run.

    Attributes:
        temperature: of sampling; 0 is greedy.
        seed: of sampling; each task derives its seed from it.
        max_failed_episodes: share of the episodes of one call of ``score`` that may fail; more are an error, or in a
            user's task the end of its suite.
        own: the tasks of the user, which judge their answers; None: there are none.
    """

    tokenizer: Tokenizer
    image_config: ImageConfig
    toolset: Toolset
    temperature: float
    seed: int
    max_failed_episodes: float = 0.0
    own: OwnTasks | None = None

    async def score(
        self,
        engine: RolloutEngine,
        sub_engine: RolloutEngine,
        tasks: Mapping[str, Sequence[Sample]],
        suites: Sequence[Suite],
        max_tokens: int,
        watch: Watch | None = None,
    ) -> dict[str, Score]:
        """Run the episodes of some suites; returns suite name -> score.

        The suite of a user's task that fails too often is left out, and the log says why.

        Args: as of `episodes`.

        Raises:
            MoonflowError: too many episodes of the other suites failed.
        """
        found = await self.episodes(engine, sub_engine, tasks, suites, max_tokens, watch)
        for name in [name for name in found if _is_own(tasks[name])]:
            lines = [episode.failure for episode in found[name] if episode.failure]
            for line in lines[:NAMED]:
                log.warning("an episode failed: %s", line)
            if too_many(len(lines), len(found[name]), self.max_failed_episodes):
                log.warning("suite %s is left out: %d of %d episodes failed", name, len(lines), len(found[name]))
                del found[name]
        episodes = [episode for name, part in found.items() if not _is_own(tasks[name]) for episode in part]
        FailureCount(self.max_failed_episodes, len(episodes)).add(episodes)
        return {name: summarise(tasks[name], part) for name, part in found.items()}

    async def episodes(
        self,
        engine: RolloutEngine,
        sub_engine: RolloutEngine,
        tasks: Mapping[str, Sequence[Sample]],
        suites: Sequence[Suite],
        max_tokens: int,
        watch: Watch | None = None,
    ) -> dict[str, list[Episode]]:
        """Run the episodes of some suites; returns suite name -> episodes in the order of its tasks.

        Args:
            engine: the model that is measured.
            sub_engine: speaks for the frozen sub-agents of a swarm.
            tasks: suite name -> held-out samples.
            max_tokens: tokens of one episode: the smaller context of the two engines.
            watch: is told of each episode and suite that has ended.

        Raises:
            Unavailable: something that all episodes need is gone.
        """

        async def one(suite: Suite, sample: Sample, number: int) -> Episode:
            running = self._episode(engine, sub_engine, suite, sample, number, max_tokens)
            episode = await attempt(running, sample)
            if watch is not None:
                watch.ended(suite, episode)
            return episode

        async def part(suite: Suite) -> list[Episode]:
            episodes = await all_of(one(suite, sample, n) for n, sample in enumerate(tasks[suite.name]))
            if watch is not None:
                watch.finished(suite, episodes)
            return episodes

        parts = await all_of(part(suite) for suite in suites)
        return {suite.name: episodes for suite, episodes in zip(suites, parts, strict=True)}

    async def _episode(
        self,
        engine: RolloutEngine,
        sub_engine: RolloutEngine,
        suite: Suite,
        sample: Sample,
        number: int,
        max_tokens: int,
    ) -> Episode:
        seed = derive_seed(self.seed, number)
        if suite.mode == "episode":
            return await run_episode(
                engine, self.tokenizer, sample, self.image_config, self.toolset,
                max_turns=sample.max_turns if isinstance(sample, TaskSample) else suite.max_turns,
                max_new_tokens=suite.max_new_tokens, max_tokens=max_tokens, temperature=self.temperature, seed=seed,
                score=judged if self.own is None else self.own.scored,
            )  # fmt: skip
        if suite.mode == "document":
            return await complete_document(
                engine, self.tokenizer, sample, self.image_config, self.toolset,
                max_new_tokens=suite.max_new_tokens, max_tokens=max_tokens, temperature=self.temperature, seed=seed,
            )  # fmt: skip
        limits = SwarmLimits(critical_steps=suite.max_turns, max_new_tokens=suite.max_new_tokens, max_tokens=max_tokens)
        return await run_swarm_episode(
            engine, sub_engine, self.tokenizer, sample, self.image_config, self.toolset, limits=limits,
            temperature=self.temperature, seed=seed, mode=suite.mode,
        )  # fmt: skip


def summarise(samples: Sequence[Sample], episodes: Sequence[Episode]) -> Score:
    """The score of a suite from its tasks and their episodes, which are in the same order."""
    values = [task_score(sample, episode) for sample, episode in zip(samples, episodes, strict=True)]
    measured = [e.metrics for e in episodes if e.finish_reason != FAILED]
    names = {name for metrics in measured for name in metrics} - {SECONDS}  # a score is the same each time
    return Score(
        value=sum(values) / len(values),
        stderr=standard_error(values),
        n=len(values),
        answered=sum(e.finish_reason == "answer" for e in episodes) / len(episodes),
        tokens=sum(e.policy_tokens for e in episodes),
        failed=sum(bool(e.failure) for e in episodes),
        figures={name: sum(m.get(name, 0.0) for m in measured) / len(measured) for name in sorted(names)},
        correct=sum(value == 1.0 for value in values),
        interval=interval(values),
        tool_calls=sum(e.metrics.get("tool_calls", 0.0) > 0 for e in episodes) / len(episodes),
        kinds=_by_kind(samples, episodes, values),
    )


def task_score(sample: Sample, episode: Episode) -> float:
    """The score of one task, from 0 to 1; 0 without an answer."""
    return _value(sample, episode.reward)


def _by_kind(samples: Sequence[Sample], episodes: Sequence[Episode], values: Sequence[float]) -> dict[str, KindScore]:
    groups: dict[str, list[tuple[float, bool]]] = {}
    for sample, episode, value in zip(samples, episodes, values, strict=True):
        if kind := kind_of(sample):
            groups.setdefault(kind, []).append((value, episode.metrics.get("tool_calls", 0.0) > 0))
    found = {}
    for kind, group in groups.items():
        scores, called = zip(*group, strict=True)
        found[kind] = KindScore(sum(scores) / len(group), sum(called) / len(group), len(group))
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


def _is_own(samples: Sequence[Sample]) -> bool:
    return bool(samples) and isinstance(samples[0], TaskSample)


async def chance_level(samples: Sequence[Sample], toolset: Toolset) -> float:
    """The score of the best constant answer: the reference answer that scores highest if it is given to every task.

    A task that its verifier cannot score adds 0, since its episodes fail too.

    Args:
        toolset: for verifiers that run the answers.

    Raises:
        Unavailable: no sandbox server starts.
    """
    candidates = {reference_answer(sample) for sample in samples}
    return max([await _mean_value(samples, answer, toolset) for answer in candidates])


async def chance_levels(tasks: Mapping[str, Sequence[Sample]], toolset: Toolset) -> dict[str, float]:
    """Suite name -> `chance_level` of its tasks."""
    return {name: await chance_level(samples, toolset) for name, samples in tasks.items()}


async def _mean_value(samples: Sequence[Sample], response: str, toolset: Toolset) -> float:
    return sum([await _value_or_nothing(sample, response, toolset) for sample in samples]) / len(samples)


async def _value_or_nothing(sample: Sample, response: str, toolset: Toolset) -> float:
    try:
        return _value(sample, await verify(sample, response, toolset))
    except Unavailable:
        raise
    except Exception:  # a verifier may raise anything on an answer of a user's data
        return 0.0


def reference_answer(sample: Sample) -> str:
    """The true answer as the text that a model would give; of a task with tests, the program of its last turn."""
    if sample.reward == TESTS:
        return str(sample.messages[-1].get("content") or "") if sample.messages else ""
    if isinstance(sample.answer, Mapping):
        return "\n".join(f"{item}: {value}" for item, value in sample.answer.items())
    return str(sample.answer)


def _value(sample: Sample, reward: float) -> float:
    """What an answer with this reward counts for in a score."""
    return float(reward >= 1.0) if sample.reward in STRICT else reward
