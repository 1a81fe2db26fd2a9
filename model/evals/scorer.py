"""Runs held-out tasks and scores them (source: ours).

The episodes of all suites begin in turn, more than the engine's batch are under way at once, and the engine batches
them. `model.evals.score` says what a score is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch

from model.boundary.at_once import all_of
from model.boundary.errors import Unavailable
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.data.samples.sample import Sample
from model.evals.completion import complete_document
from model.evals.score import Outcome, Score, outcome_of, score_of, value_of
from model.evals.suites import Suite
from model.network.multimodal import KimiK25
from model.network.precision import narrow_products
from model.rl.environment import Episode, derive_seed, judged, run_episode
from model.rl.failures import NAMED, FailureCount, attempt, warn_of_lost_sub_agents
from model.rl.rewards import TESTS
from model.rl.rewards.examined import REASONING_GYM
from model.rl.tasks.own_tasks import OwnTasks, too_many
from model.rl.tasks.task import TaskSample
from model.rl.tools.toolset import Toolset
from model.rl.verifier import verify
from model.rollout.embedded import EmbeddedEngine
from model.rollout.protocol import RolloutEngine
from model.swarm.orchestrator import SwarmLimits, run_swarm_episode

log = logging.getLogger(__name__)

PROGRAMS = "ipython"  # the tool that runs programs of a model
IN_FLIGHT = 192
"""Episodes whose model may write programs, under way at once: fewer than the sandbox has sessions, each of which waits
for its episode's next turn (ours)."""
AHEAD = 1.5
"""Episodes under way for each completion that the engine generates at once, so that those whose tools run leave no row
empty (ours)."""


def measuring_engine(model: KimiK25, max_batch: int) -> EmbeddedEngine:
    """The engine of an evaluation: it reads prompts in bfloat16 as supervised training does, where that is fast."""
    return EmbeddedEngine(model, max_batch, prompt_products=narrow_products(torch.device("cpu")))


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
        max_failed_episodes: share of a checkpoint's episodes that may fail; more are an error, or in a
            user's task the end of its suite.
        own: the tasks of the user, which judge their answers; None: there are none.
        max_batch: completions that the engine generates at the same time. AHEAD times as many episodes are under way,
            but IN_FLIGHT at least; of those whose model may write programs, IN_FLIGHT at most.
    """

    tokenizer: Tokenizer
    image_config: ImageConfig
    toolset: Toolset
    temperature: float
    seed: int
    max_failed_episodes: float = 0.0
    own: OwnTasks | None = None
    max_batch: int = 1

    async def score(
        self,
        engine: RolloutEngine,
        sub_engine: RolloutEngine,
        tasks: Mapping[str, Sequence[Sample]],
        suites: Sequence[Suite],
        max_tokens: int,
        watch: Watch | None = None,
    ) -> dict[str, Score]:
        """Run the episodes of some suites; returns suite name -> score. As `outcomes` otherwise."""
        found = await self.outcomes(engine, sub_engine, tasks, suites, max_tokens, watch)
        return {name: score_of(part) for name, part in found.items()}

    async def outcomes(
        self,
        engine: RolloutEngine,
        sub_engine: RolloutEngine,
        tasks: Mapping[str, Sequence[Sample]],
        suites: Sequence[Suite],
        max_tokens: int,
        watch: Watch | None = None,
        before: Mapping[str, Sequence[Outcome]] | None = None,
    ) -> dict[str, list[Outcome]]:
        """Run the episodes of some suites; returns suite name -> what became of its tasks, in their order.

        The suite of a user's task that fails too often is left out, and the log says why.

        Args: as of `episodes`, and
            before: suite name -> what became of the earlier tasks of the same checkpoint. The new ones are appended to
                these, and are run as if all of them were asked at once.

        Raises:
            MoonflowError: too many episodes of the other suites failed, earlier ones included.
        """
        earlier = dict(before or {})
        first = {name: len(done) for name, done in earlier.items()}
        ran = await self.episodes(engine, sub_engine, tasks, suites, max_tokens, watch, first)
        for part in ran.values():
            warn_of_lost_sub_agents(part)
        found = {name: list(done) for name, done in earlier.items()}
        for name, part in ran.items():
            found[name] = found.get(name, []) + [outcome_of(*pair) for pair in zip(tasks[name], part, strict=True)]
        own = [task.short_name for task in self.own or ()]
        for name in [name for name in own if name in ran]:
            for episode in [episode for episode in ran[name] if episode.failure][:NAMED]:
                log.warning("an episode failed: %s", episode.failure)
            if too_many(broken := _broken(found[name]), len(found[name]), self.max_failed_episodes):
                log.warning("suite %s is left out: %d of %d episodes failed", name, broken, len(found[name]))
                del found[name]
        others = [one for name, part in found.items() if name not in own for one in part]
        past = [one for name, part in earlier.items() if name not in own for one in part]
        episodes = [episode for name, part in ran.items() if name not in own for episode in part]
        first_failure = next((one.failure for one in past if one.failure), "")
        FailureCount(self.max_failed_episodes, len(others), _broken(past), first_failure).add(episodes)
        return found

    async def episodes(
        self,
        engine: RolloutEngine,
        sub_engine: RolloutEngine,
        tasks: Mapping[str, Sequence[Sample]],
        suites: Sequence[Suite],
        max_tokens: int,
        watch: Watch | None = None,
        first: Mapping[str, int] | None = None,
    ) -> dict[str, list[Episode]]:
        """Run the episodes of some suites; returns suite name -> episodes in the order of its tasks.

        Args:
            engine: the model that is measured.
            sub_engine: speaks for the frozen sub-agents of a swarm.
            tasks: suite name -> held-out samples.
            max_tokens: tokens of one episode: the smaller context of the two engines.
            watch: is told of each episode and suite that has ended.
            first: suite name -> number of its first task, which decides its seed; 0 if left out.

        Raises:
            Unavailable: something that all episodes need is gone.
        """
        first, places = first or {}, asyncio.Semaphore(max(IN_FLIGHT, int(AHEAD * self.max_batch)))
        sessions = asyncio.Semaphore(IN_FLIGHT)

        async def one(suite: Suite, sample: Sample, number: int) -> Episode:
            async with sessions if PROGRAMS in sample.tools else nullcontext(), places:
                running = self._episode(engine, sub_engine, suite, sample, number, max_tokens)
                episode = await attempt(running, sample)
            if watch is not None:
                watch.ended(suite, episode)
            return episode

        async def part(suite: Suite) -> list[Episode]:
            numbered = enumerate(tasks[suite.name], first.get(suite.name, 0))
            episodes = await all_of(one(suite, sample, n) for n, sample in numbered)
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


def _broken(outcomes: Sequence[Outcome]) -> int:
    return sum(bool(one.failure) for one in outcomes)


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
        return value_of(sample, await verify(sample, response, toolset))
    except Unavailable:
        raise
    except Exception:  # a verifier may raise anything on an answer of a user's data
        return 0.0


def reference_answer(sample: Sample) -> str:
    """The true answer as the text that a model would give; of a task with tests, the program of its last turn."""
    if sample.reward == TESTS:
        return str(sample.messages[-1].get("content") or "") if sample.messages else ""
    if sample.reward == "says":
        return str(sample.answer["says"])
    if sample.reward == REASONING_GYM:
        return str(sample.answer["entry"]["answer"])
    if isinstance(sample.answer, Mapping):
        return "\n".join(f"{item}: {value}" for item, value in sample.answer.items())
    return str(sample.answer)
