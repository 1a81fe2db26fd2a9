"""Held-out tasks -> scores. All episodes of all suites run at once: the engine batches them (source: ours).

A score is strict accuracy where the reward tells right from wrong (exact strings, numbers), and the reward itself where
it measures closeness (OCR edit distance, box overlap, table F1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from model.data.sample import Sample
from model.evals.tasks import Suite
from model.image import ImageConfig
from model.rl import rewards
from model.rl.environment import FAILED, Episode, derive_seed, run_episode
from model.rl.failures import FailureCount, all_of, attempt
from model.rl.tools.toolset import Toolset
from model.rollout.protocol import Engine
from model.swarm.orchestrator import SwarmLimits, run_swarm_episode
from model.tokenizer import Tokenizer

STRICT = ("exact", "number")  # rewards whose eval score is accuracy


@dataclass(frozen=True)
class Score:
    """Of one suite.

    Attributes:
        value: mean score over ``n`` tasks.   stderr: its standard error.
        answered: share of episodes that ended with an answer.
        failed: episodes in which something broke (`model.rl.failures`); one that ended by it scores 0.
        tokens: sampled in all.
        figures: means of what the environment measured in the others, e.g. ``critical_steps`` and ``parallelism`` of a
            swarm.
    """

    value: float
    stderr: float
    n: int
    answered: float
    tokens: int
    failed: int = 0
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """How episodes are run: ``sub_engine`` speaks for a swarm's frozen sub-agents.

    Attributes:
        max_failed_episodes: share of the episodes of one call of ``score`` that may fail; more are an error.
    """

    tokenizer: Tokenizer
    image_config: ImageConfig
    toolset: Toolset
    temperature: float
    seed: int
    max_failed_episodes: float = 0.0

    async def score(
        self,
        engine: Engine,
        sub_engine: Engine,
        tasks: Mapping[str, Sequence[Sample]],
        suites: Sequence[Suite],
        max_tokens: int,
    ) -> dict[str, Score]:
        """Scores by suite name.

        Args:
            tasks: suite name -> held-out samples.
            max_tokens: of one episode: the smaller context of the two engines.

        Raises:
            MoonflowError: too many episodes failed.
        """
        episodes = await all_of(
            attempt(self._episode(engine, sub_engine, suite, sample, n, max_tokens), sample)
            for suite in suites
            for n, sample in enumerate(tasks[suite.name])
        )
        FailureCount(self.max_failed_episodes, len(episodes)).add(episodes)
        left = iter(episodes)
        return {suite.name: summarise(of := tasks[suite.name], list(islice(left, len(of)))) for suite in suites}

    async def _episode(
        self, engine: Engine, sub_engine: Engine, suite: Suite, sample: Sample, number: int, max_tokens: int
    ) -> Episode:
        seed = derive_seed(self.seed, number)
        if suite.mode == "episode":
            return await run_episode(
                engine, self.tokenizer, sample, self.image_config, self.toolset, max_turns=suite.max_turns,
                max_new_tokens=suite.max_new_tokens, max_tokens=max_tokens, temperature=self.temperature, seed=seed,
            )  # fmt: skip
        limits = SwarmLimits(critical_steps=suite.max_turns, max_new_tokens=suite.max_new_tokens, max_tokens=max_tokens)
        return await run_swarm_episode(
            engine, sub_engine, self.tokenizer, sample, self.image_config, self.toolset, limits=limits,
            temperature=self.temperature, seed=seed, swarm=suite.mode == "swarm",
        )  # fmt: skip


def summarise(samples: Sequence[Sample], episodes: Sequence[Episode]) -> Score:
    """Mean and standard error of finished episodes."""
    values = [_score(sample, e.response) if e.finish_reason == "answer" else 0.0
              for sample, e in zip(samples, episodes, strict=True)]  # fmt: skip
    measured = [e.metrics for e in episodes if e.finish_reason != FAILED]
    names = {name for metrics in measured for name in metrics}
    return Score(
        value=sum(values) / len(values),
        stderr=standard_error(values),
        n=len(values),
        answered=sum(e.finish_reason == "answer" for e in episodes) / len(episodes),
        tokens=sum(e.policy_tokens for e in episodes),
        failed=sum(bool(e.failure) for e in episodes),
        figures={name: sum(m.get(name, 0.0) for m in measured) / len(measured) for name in sorted(names)},
    )


def standard_error(values: Sequence[float]) -> float:
    """Of the mean: sqrt(p (1 - p) / n) for zeros and ones, else sample standard deviation / sqrt(n); 0 for n = 1."""
    n = len(values)
    mean = sum(values) / n
    if all(value in (0.0, 1.0) for value in values):
        return math.sqrt(mean * (1 - mean) / n)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, n - 1) / n)


def chance_level(samples: Sequence[Sample]) -> float:
    """Score of the best constant answer: that one reference answer, given to every task, which scores highest. A task
    that cannot be scored, whose episodes fail, adds nothing."""
    candidates = {reference_answer(sample) for sample in samples}
    return max(sum(_score_or_nothing(sample, answer) for sample in samples) / len(samples) for answer in candidates)


def _score_or_nothing(sample: Sample, response: str) -> float:
    try:
        return _score(sample, response)
    except Exception:  # whatever a foreign answer makes a verifier raise
        return 0.0


def reference_answer(sample: Sample) -> str:
    """The true answer in the words in which a model would give it."""
    if isinstance(sample.answer, Mapping):
        return "\n".join(f"{item}: {value}" for item, value in sample.answer.items())
    return str(sample.answer)


def _score(sample: Sample, response: str) -> float:
    if sample.reward in STRICT:
        return float(rewards.correct(sample.reward, response, sample.answer))
    return rewards.score(sample.reward, response, sample.answer)
