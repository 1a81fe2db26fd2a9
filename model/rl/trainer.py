"""The RL loop: roll out, reward, learn, publish the weights, save (source: K2.5 paper).

Joint RL and PARL are this loop with different rollouts and rewards. Everything random in a round is derived from (seed,
iteration, prompt, sample), so no generator's state is saved. A checkpoint has the weights, the optimizer's state, the
iteration with the tokens and failed episodes until then, what the spike guard has seen, and, where they are used,
Toggle's budgets, what was asked of and failed in a user's tasks, the position in the pre-training data and the kept
successes.

Several ranks divide the episodes of a round, tell each other, and divide the rows into which all of them are packed:
groups, budgets and failures are the same on every rank.

Rollouts and updates take turns, or later rounds are rolled out while one is learned from (`model.rl.rounds`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from model.boundary.at_once import all_of
from model.boundary.errors import MoonflowError
from model.checkpoint.folder import load_training_state
from model.checkpoint.load import load_weights
from model.checkpoint.saving import AsyncSaver
from model.data.batches.packing import pack
from model.data.batches.stream import StreamState
from model.data.samples.sample import Sample
from model.data.samples.tokenize import TokenizedSample
from model.network.multimodal import KimiK25
from model.optimizer.optimization import Optimization
from model.parallel.ranks import Ranks
from model.parallel.rows import rows_of_rank
from model.rl.environment import Episode, derive_seed
from model.rl.failures import FailureCount, attempt, warn_of_lost_sub_agents
from model.rl.groups import Group, Reward, outcome, rewarded_groups, trained_episodes
from model.rl.objective import ObjectiveConfig, PolicyLoss
from model.rl.policy import sampled_policy
from model.rl.ptx import PTX
from model.rl.rounds import Rounds, staleness
from model.rl.successes import Successes
from model.rl.tasks.mixture import TaskMixture
from model.rl.toggle import Toggle
from model.train.cross_entropy import CrossEntropy
from model.train.engine import open_engine
from model.train.guard import SpikeGuard
from model.train.protocol import StepServices

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RLSettings:
    """One RL run (all values: ours; the paper does not disclose them).

    Attributes:
        iterations: rounds of rollout and training.
        prompts_per_iteration: prompts per round. samples_per_prompt: K, episodes per prompt.
        learning_rate: of MuonClip, constant.
        updates: gradient steps on each round's episodes; after the first, they are off-policy.
        seed: of everything sampled.
        checkpoint_every: iterations between saved states; 0 saves only at the end.
        expert_precision: "int4" trains the routed experts for an INT4 export; episodes must then come from
            ``model.network.served.as_served``, or the policy that is trained is not the one that acted.
        micro_batch_tokens: as in ``model.optimizer.optimization``.
        max_failed_episodes: share of the run's episodes that may fail (`model.rl.failures`); more end it.
        max_staleness: n, rounds that may be in flight while one is learned from; their episodes begin with weights that
            are at most n publishes old. Above 0 there is one process, and the engine must not sample from the model
            that is trained, but from what was published, and take new weights while requests are in flight.
    """

    iterations: int
    prompts_per_iteration: int
    samples_per_prompt: int
    learning_rate: float
    updates: int = 1
    seed: int = 0
    checkpoint_every: int = 0
    expert_precision: str = "full"
    micro_batch_tokens: int = 16384
    max_failed_episodes: float = 0.0
    max_staleness: int = 0
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    def saves(self, iteration: int) -> bool:
        """Whether the state is saved after this iteration; the first one is 1."""
        every = self.checkpoint_every
        return iteration == self.iterations or bool(every and iteration % every == 0)

    @property
    def optimization(self) -> Optimization:
        """No decay pulls at the policy, and no load moves its routers' biases."""
        return Optimization.constant(
            self.iterations * self.updates, self.learning_rate, weight_decay=0.0, bias_update_rate=0.0,
            expert_precision=self.expert_precision, micro_batch_tokens=self.micro_batch_tokens,
        )  # fmt: skip


class Prompts(Protocol):
    def __getitem__(self, n: int) -> Sample:
        """The n-th training prompt of the run."""
        ...


Rollout = Callable[[Sample, int, int], Awaitable[Episode]]
"""(task, seed, round from 0) -> one scored episode."""

Watch = Callable[[int, Sequence[Group]], None]
"""(iteration, the first one is 1; its groups): is told of each round."""

Measure = Callable[[], dict[str, float]]
"""Further figures of a round whose episodes are there."""


@dataclass
class RLState:
    """What the loop itself remembers between processes; ``failed`` counts episodes."""

    iteration: int = 0
    tokens_seen: int = 0
    failed: int = 0


class RLTrainer:
    """Trains ``model`` in place, from the newest checkpoint of this step if there is one.

    Args:
        rollout: samples episodes from the engine that serves this model.
        publish: called with the policy after every change of its weights; the engine must sample from it next. It
            counts as the engine's being given weights once (``Completion.weight_versions``).
        ranks: of this process. The model holds its weights on each of them.
        toggle: None trains without length budgets.
        ptx: None trains on the episodes alone.
        tasks: counts what fails in a user's tasks, from which ``prompts`` draws; None: there are none.
        watch: is told of each round on every rank; None: nobody is.
        successes: keeps successful episodes, which are saved with each checkpoint; None: none are kept.
        measure: is asked for figures of each round, on every rank; None: there are none besides the trainer's.

    Raises:
        MoonflowError: the settings do not fit the ranks; or a checkpoint is damaged.
    """

    def __init__(
        self,
        model: KimiK25,
        prompts: Prompts,
        rollout: Rollout,
        publish: Callable[[KimiK25], Awaitable[None]],
        settings: RLSettings,
        *,
        pad_id: int,
        tokenizer_folder: Path,
        services: StepServices,
        reward: Reward = outcome,
        toggle: Toggle | None = None,
        ptx: PTX | None = None,
        tasks: TaskMixture | None = None,
        watch: Watch | None = None,
        successes: Successes | None = None,
        measure: Measure | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks, self.watch, self.successes, self.measure = ranks or Ranks(), watch, successes, measure
        if settings.max_staleness and self.ranks.world > 1:
            raise MoonflowError(
                f"max_staleness = {settings.max_staleness} works in one process only, and here are {self.ranks.world}: "
                "set it to 0"
            )
        self.model, self.prompts, self.rollout, self.publish = model.to(self.ranks.device), prompts, rollout, publish
        self.settings, self.reward, self.toggle, self.ptx, self.tasks = settings, reward, toggle, ptx, tasks
        self.pad_id, self.tokenizer_folder, self.services = pad_id, tokenizer_folder, services
        found = services.checkpoints.latest()
        if found is not None:  # before the engine is opened: it may divide the weights among the ranks
            load_weights(model, found)
        self.engine = open_engine(model, settings.optimization, self.ranks)
        self.state, self.guard, position = RLState(), SpikeGuard(), None
        if found is not None:
            saved = load_training_state(found, self.engine)
            self.state, self.guard = RLState(**saved["loop"]), SpikeGuard(saved.get("guard"))
            if toggle is not None:
                toggle.load(saved["toggle"])
            if tasks is not None:
                tasks.load(saved["data_position"]["tasks"])
            if successes is not None:
                successes.load(found)
            if ptx is not None:
                position = StreamState(**saved["data_position"]["pretraining"])
        self.published = 0  # how often this process gave the engine weights
        self.begun = 0  # rounds of which the prompts were asked for
        self.rounds = Rounds(self._play, settings.iterations, settings.max_staleness, self.ranks.device)
        self.pretraining = ptx.stream(position) if ptx is not None else None
        if self.pretraining is not None and (rows := self.pretraining.recipe.rows) % self.ranks.data_ranks:
            raise MoonflowError(
                f"ptx_rows = {rows} does not divide among {self.ranks.data_ranks} data ranks: choose a multiple of it"
            )

    def train(self) -> RLState:
        """All iterations that are left.

        Raises:
            MoonflowError: too many episodes of the run have failed, or step after step cannot be trained on.
        """
        services, ranks = self.services, self.ranks
        place = ranks.rank, ranks.world, ranks.expert_share
        saving = AsyncSaver(services.checkpoints, services.work, self.tokenizer_folder, *place)
        with saving as saver:
            state = asyncio.run(self._train(saver))
        # Only after a normal end: closing may be a collective, and the others would not come if one rank had failed.
        self.engine.close()
        return state

    async def publish_weights(self) -> None:
        """Hand the weights of now to the engine that samples; every rank calls it."""
        await self.publish(sampled_policy(self.model, self.engine, self.ranks))
        self.published += 1

    async def _train(self, saver: AsyncSaver) -> RLState:
        async with self.rounds:
            await self.publish_weights()
            while self.state.iteration < self.settings.iterations:
                begun = time.perf_counter()
                groups, figures = await self.collect()
                rolled = time.perf_counter()
                figures |= await self.rounds.beside(partial(self.learn, groups))
                await self.publish_weights()
                self._report(groups, figures, rolled - begun, time.perf_counter() - rolled)
                if self.watch is not None:
                    self.watch(self.state.iteration, groups)
                await self._save(saver)
        return self.state

    def _play(self, t: int) -> Coroutine[Any, Any, tuple[list[Sample], list[Episode]]]:
        """The prompts of round ``t``, and what will be this rank's episodes of it; every rank calls it."""
        settings = self.settings
        count, k = settings.prompts_per_iteration, settings.samples_per_prompt
        samples = [self.prompts[t * count + number] for number in range(count)]
        self.begun = t + 1
        asked = self.ranks.share([(number, j) for number in range(count) for j in range(k)])

        async def played() -> tuple[list[Sample], list[Episode]]:
            return samples, await all_of(
                attempt(self.rollout(samples[number], derive_seed(settings.seed, t, number, j), t), samples[number])
                for number, j in asked
            )

        return played()

    async def collect(self) -> tuple[list[Group], dict[str, float]]:
        """This iteration's episodes, rewarded, and what they say about the policy (`model.rl.groups`).

        Raises:
            MoonflowError: too many episodes of the run have failed.
        """
        settings, t = self.settings, self.state.iteration
        count, k = settings.prompts_per_iteration, settings.samples_per_prompt
        self.model.eval()
        samples, played = await self.rounds.played(t)
        episodes = await self.rounds.beside(partial(self.ranks.joined, played))
        by_sample = [episodes[number * k : (number + 1) * k] for number in range(count)]
        counted, of_tasks = episodes, dict[str, float]()
        if self.tasks is not None:
            counted, of_tasks = self.tasks.account(samples, by_sample, self.begun * count)
        failures = FailureCount(settings.max_failed_episodes, settings.iterations * count * k, count=self.state.failed)
        failures.add(counted)
        self.state.failed = failures.count
        warn_of_lost_sub_agents(episodes)
        groups, figures = rewarded_groups(t, samples, by_sample, self.reward, self.toggle)
        figures |= staleness([episode for group in groups for episode in group.episodes], self.published)
        failed = sum(bool(episode.failure) for episode in episodes)
        measured = self.measure() if self.measure is not None else dict[str, float]()
        return groups, figures | {"episodes/failed": float(failed)} | of_tasks | measured

    def learn(self, groups: list[Group]) -> dict[str, float]:
        """The gradient steps of one iteration: the policy's loss and, with PTX, the pre-training loss.

        With PTX there is a step even when no group has a signal.

        Raises:
            MoonflowError: step after step cannot be trained on (``model.train.guard``).
        """
        episodes = trained_episodes(groups)
        figures = {"groups/with_signal": sum(group.has_signal for group in groups) / max(1, len(groups))}
        if not episodes and self.ptx is None:
            return figures
        self.model.train()
        for update in range(self.settings.updates):
            found = self._backward(episodes)
            if update:  # before the first step the newest weights are the policy: what is left is the engine's error
                found = {key: value for key, value in found.items() if not key.startswith("rollout/")}
            figures |= found | self._update(found, self.state.iteration * self.settings.updates + update)
        return figures

    def _backward(self, episodes: list[tuple[Episode, float, float]]) -> dict[str, float]:
        figures = {"loss/policy": 0.0, "policy/masked_fraction": 0.0}  # where no group has a signal
        if episodes:
            samples, ranks = [as_training_sample(episode) for episode, _, _ in episodes], self.ranks
            layout = {"rows_multiple_of": ranks.data_ranks, "tokens_multiple_of": ranks.layout.sequence_parallel}
            batch = pack(samples, self.pad_id, **layout)
            mine = rows_of_rank(batch, ranks, self.model.config).to(ranks.device)
            newest = self.published if self.settings.max_staleness else None
            loss = PolicyLoss.of(episodes, self.settings.objective, ranks.device, newest)
            figures |= self.engine.backward(mine, loss, last=self.ptx is None)
        if self.ptx is not None and self.pretraining is not None:
            batch = self.pretraining.next_batch(self.ranks.data_rank, self.ranks.data_ranks)
            figures |= self.engine.backward(batch.to(self.ranks.device), CrossEntropy(self.ptx.weight))
        return figures

    def _update(self, figures: dict[str, float], step: int) -> dict[str, float]:
        verdict = self.guard.judge(figures)
        if verdict == "train":
            return self.engine.update(step)
        self.engine.discard()
        log.warning("iteration %d: a step is not trained: %s", self.state.iteration + 1, self.guard.reason)
        if verdict == "roll back":  # the same seeds would lead here again
            raise MoonflowError(
                f"step after step cannot be trained on ({self.guard.reason}): lower learning_rate, or start again from "
                "the last checkpoint with another seed and a new run id"
            )
        return {}

    def _report(self, groups: list[Group], figures: dict[str, float], rollout_s: float, train_s: float) -> None:
        tokens = sum(episode.policy_tokens for group in groups for episode in group.episodes)
        self.state.iteration += 1
        self.state.tokens_seen += tokens
        figures |= {"tokens/seen": self.state.tokens_seen, "tokens/s": tokens / (rollout_s + train_s)}
        figures |= {"seconds/rollout": rollout_s, "seconds/train": train_s}
        if self.successes is not None:
            figures |= self.successes.add(self.state.iteration, groups)
        self.services.metrics.log(figures, self.state.iteration)
        newest = {"tokens_per_s": figures["tokens/s"]}
        if "reward/mean" in figures:  # not if every episode of the round failed
            newest["reward"] = figures["reward/mean"]
        self.services.progress.update(self.state.iteration, self.settings.iterations, **newest)

    async def _save(self, saver: AsyncSaver) -> None:
        every, t = self.settings.checkpoint_every, self.state.iteration
        if not self.settings.saves(t):
            return
        if self.settings.max_staleness:  # the upload of the checkpoint before must not stop the rounds in flight
            await asyncio.to_thread(saver.wait)
        position: dict[str, Any] = {"prompts": t * self.settings.prompts_per_iteration}
        if self.pretraining is not None:
            position["pretraining"] = vars(self.pretraining.state())
        if self.tasks is not None:
            position["tasks"] = self.tasks.state()
        toggle = self.toggle.state() if self.toggle is not None else {}
        saver.save(
            self.model.config,
            self.engine.written_weights(),
            self.engine.named_state(),
            {"loop": vars(self.state), "data_position": position, "toggle": toggle, "guard": self.guard.state()},
            index=-(-t // every) - 1 if every else 0,
            tokens_seen=self.state.tokens_seen,
            complete=t == self.settings.iterations,
            files=self.successes.files() if self.successes is not None and self.ranks.rank == 0 else None,
        )


def as_training_sample(episode: Episode) -> TokenizedSample:
    """An episode for the packer: its policy tokens are the targets."""
    return TokenizedSample(
        torch.tensor(episode.input_ids, dtype=torch.int64),
        torch.tensor(episode.policy_mask, dtype=torch.bool),
        episode.pixel_values,
        episode.grid_thws,
    )
