"""The RL loop: prompts -> K episodes each -> rewards -> Toggle -> gradient steps -> checkpoint (source: K2.5 paper).

Joint RL and PARL are this loop with different rollouts and rewards. Everything random is derived from (seed, iteration,
prompt, sample), so the state to resume from is the iteration, the optimizer and Toggle's budgets.

Shape legend: N policy tokens of a batch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from model.data.packing import Batch, pack
from model.data.sample import Sample
from model.data.stream import StreamState
from model.data.tokenize import TokenizedSample
from model.multimodal import KimiK25
from model.quantization import experts_in
from model.rl.environment import FAILED, Episode, derive_seed
from model.rl.failures import FailureCount, all_of, attempt
from model.rl.objective import Objective, ObjectiveConfig, advantages, policy_loss, token_weights
from model.rl.ptx import PTX
from model.rl.toggle import Toggle
from model.train.checkpoint import load_checkpoint
from model.train.engine import add_gradient
from model.train.optimizer import MuonClip, build_optimizer, qk_clip
from model.train.protocol import Surroundings
from model.train.saving import AsyncSaver
from model.train.shares import RowShares

TOKENS_PER_BATCH = 16384  # episodes are split into parts of about so many tokens, whose gradients add up


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
            ``model.quantization.as_served``, or the policy that is trained is not the one that acted.
        max_failed_episodes: share of the run's episodes that may fail (`model.rl.failures`); more end it.
    """

    iterations: int
    prompts_per_iteration: int
    samples_per_prompt: int
    learning_rate: float
    updates: int = 1
    seed: int = 0
    checkpoint_every: int = 0
    expert_precision: str = "full"
    max_failed_episodes: float = 0.0
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)


class Prompts(Protocol):
    def __getitem__(self, n: int) -> Sample:
        """The n-th training prompt of the run."""
        ...


Rollout = Callable[[Sample, int], Awaitable[Episode]]
"""(task, seed) -> one scored episode."""

Reward = Callable[[int, Episode], tuple[float, dict[str, float]]]
"""(iteration, episode) -> what is trained on, and its parts as metrics."""


def outcome(iteration: int, episode: Episode) -> tuple[float, dict[str, float]]:
    """The outcome alone."""
    return episode.reward, {}


@dataclass(frozen=True)
class Group:
    """The episodes of one prompt, at most K, with the advantages that they are trained with; those that failed are not
    among them."""

    sample: Sample
    episodes: list[Episode]
    advantages: list[float]


@dataclass
class LoopState:
    iteration: int = 0
    tokens_seen: int = 0
    failed: int = 0  # episodes


class RLTrainer:
    """Trains ``model`` in place.

    Args:
        rollout: samples episodes from the engine that serves this model.
        publish_weights: called after every change of the weights; the engine must sample from the new ones next.
        toggle: None trains without length budgets.
        ptx: None trains on the episodes alone.
    """

    def __init__(
        self,
        model: KimiK25,
        prompts: Prompts,
        rollout: Rollout,
        publish_weights: Callable[[], Awaitable[None]],
        settings: RLSettings,
        *,
        pad_id: int,
        tokenizer_folder: Path,
        around: Surroundings,
        reward: Reward = outcome,
        toggle: Toggle | None = None,
        ptx: PTX | None = None,
    ) -> None:
        self.model, self.prompts, self.rollout, self.publish_weights = model, prompts, rollout, publish_weights
        self.settings, self.reward, self.toggle, self.ptx = settings, reward, toggle, ptx
        self.pretraining = ptx.stream(None) if ptx is not None else None
        self.pad_id, self.tokenizer_folder, self.around = pad_id, tokenizer_folder, around
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.endswith("e_score_correction_bias"))
        self.optimizer: MuonClip = build_optimizer(model, settings.learning_rate, weight_decay=0.0)
        self.shares = RowShares(model)
        self.loop = LoopState()

    def train(self) -> LoopState:
        """All iterations, from the newest checkpoint of this step if there is one."""
        with closing(self.shares), AsyncSaver(self.around, self.tokenizer_folder) as saver:
            return asyncio.run(self._train(saver))

    async def _train(self, saver: AsyncSaver) -> LoopState:
        if (found := self.around.checkpoints.latest()) is not None:
            state = load_checkpoint(found, self.model, self.optimizer)
            self.loop = LoopState(**state["loop"])
            if self.toggle is not None:
                self.toggle.load(state["toggle"])
            if self.ptx is not None:
                self.pretraining = self.ptx.stream(StreamState(**state["data_position"]["pretraining"]))
        settings = self.settings
        await self.publish_weights()
        while self.loop.iteration < settings.iterations:
            begun = time.perf_counter()
            groups, figures = await self.collect()
            rolled = time.perf_counter()
            figures |= self.learn(groups)
            await self.publish_weights()
            ended = time.perf_counter()

            tokens = sum(episode.policy_tokens for group in groups for episode in group.episodes)
            self.loop.iteration += 1
            self.loop.tokens_seen += tokens
            figures |= {"tokens/seen": self.loop.tokens_seen, "tokens/s": tokens / (ended - begun)}
            figures |= {"seconds/rollout": rolled - begun, "seconds/train": ended - rolled}
            self.around.metrics.log(figures, self.loop.iteration)
            newest = {"tokens_per_s": figures["tokens/s"]}
            if "reward/mean" in figures:  # not if every episode of the round failed
                newest["reward"] = figures["reward/mean"]
            self.around.progress.update(self.loop.iteration, settings.iterations, **newest)
            self._save(saver)
        return self.loop

    async def collect(self) -> tuple[list[Group], dict[str, float]]:
        """This iteration's episodes, rewarded, and what they say about the policy.

        An episode that failed says nothing about it: rewards, advantages, lengths and figures are those of the others
        of its group, and a group without others is left out.

        Raises:
            MoonflowError: too many episodes of the run have failed.
        """
        t, count, k = self.loop.iteration, self.settings.prompts_per_iteration, self.settings.samples_per_prompt
        samples = [self.prompts[t * count + number] for number in range(count)]
        self.model.eval()
        episodes = await all_of(
            attempt(self.rollout(sample, derive_seed(self.settings.seed, t, number, j)), sample)
            for number, sample in enumerate(samples)
            for j in range(k)
        )
        failures = FailureCount(
            self.settings.max_failed_episodes, self.settings.iterations * count * k, count=self.loop.failed
        )
        failed = failures.add(episodes)
        self.loop.failed = failures.count
        groups: list[Group] = []
        parts: dict[str, list[float]] = {}
        for number, sample in enumerate(samples):
            members = [e for e in episodes[number * k : (number + 1) * k] if e.finish_reason != FAILED]
            if not members:
                continue
            rewarded = [self.reward(t, episode) for episode in members]
            values, lengths = [value for value, _ in rewarded], [episode.policy_tokens for episode in members]
            if self.toggle is not None:
                prompt = f"{sample.family}/{sample.key}"
                self.toggle.measure(prompt, lengths, [episode.correct for episode in members])
                values = self.toggle.shape(t, prompt, values, lengths)
            groups.append(Group(sample, members, advantages(values)))
            for key, value in _figures(sample, members, values, [figures for _, figures in rewarded]):
                parts.setdefault(key, []).append(value)
        figures = {key: float(np.mean(values)) for key, values in parts.items()}
        figures["episodes/failed"] = float(failed)
        if self.toggle is not None:
            figures["toggle/budget_phase"] = float(self.toggle.budget_phase(t))
        return groups, figures

    def learn(self, groups: list[Group]) -> dict[str, float]:
        """The gradient steps of one iteration.

        Groups whose rewards are all equal have no advantage and are left out of the passes; the normalisation still
        counts them. With PTX there is a step even when no group is left.
        """
        weights = token_weights([[episode.policy_tokens for episode in group.episodes] for group in groups])
        rows = [
            (episode, advantage, weight)
            for group, group_weights in zip(groups, weights, strict=True)
            for episode, advantage, weight in zip(group.episodes, group.advantages, group_weights, strict=True)
            if any(group.advantages) and episode.policy_tokens
        ]
        figures = {"groups/with_signal": sum(any(group.advantages) for group in groups) / max(1, len(groups))}
        if not rows and self.pretraining is None:
            return figures
        self.model.train()
        for update in range(self.settings.updates):
            totals = {"loss/policy": 0.0, "policy/masked_fraction": 0.0}
            gaps: list[Tensor] = []
            for part in _parts(rows):
                loss, masked, gap_N = self._backward(part)
                totals["loss/policy"] += loss
                totals["policy/masked_fraction"] += masked
                gaps.append(gap_N)
            if self.ptx is not None and self.pretraining is not None:
                with experts_in(self.settings.expert_precision):
                    figures |= add_gradient(self.shares, self.pretraining.next_batch(), self.ptx.weight)
            # Before the first step the two policies should be one: what is left is the engine's error.
            if update == 0 and gaps:
                gap_N = torch.cat(gaps)
                figures["rollout/mismatch_kl"] = -float(gap_N.mean())
                figures["rollout/mismatch_max"] = float(gap_N.abs().max())
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            figures |= totals | {"gradient_norm": float(norm), "qk_clip/heads": float(qk_clip(self.model.attentions()))}
        return figures

    def _backward(self, rows: list[tuple[Episode, float, float]]) -> tuple[float, float, Tensor]:
        """Add the gradient of some episodes; loss, masked fraction, log-ratios [N] before this step."""
        batch = pack([as_training_sample(episode) for episode, _, _ in rows], self.pad_id)
        # Targets stand in row order, each episode's own in reading order: sorting by episode lines them up with lists.
        order_N = torch.argsort(batch.sample_N, stable=True)
        old_N = torch.empty(len(order_N))
        old_N[order_N] = torch.tensor([value for episode, _, _ in rows for value in episode.policy_logprobs])
        advantages_N = torch.tensor([advantage for _, advantage, _ in rows])[batch.sample_N]
        weights_N = torch.tensor([weight for _, _, weight in rows])[batch.sample_N]

        def backward(model: KimiK25, part: tuple[Batch, Tensor, Tensor, Tensor]) -> tuple[Objective, Tensor]:
            share, old_N, advantages_N, weights_N = part
            logprobs_N = model.logprobs(share).float()
            objective = policy_loss(logprobs_N, old_N, advantages_N, weights_N, self.settings.objective)
            objective.loss.backward()  # type: ignore[no-untyped-call]
            return objective, (logprobs_N - old_N).detach()

        shares = self.shares.cut(batch)
        targets = [len(share.targets_N) for share in shares]
        split = (values_N.split(targets) for values_N in (old_N, advantages_N, weights_N))
        with experts_in(self.settings.expert_precision):
            results = self.shares.run(backward, list(zip(shares, *split, strict=True)))
        loss = sum(float(objective.loss.detach()) for objective, _ in results)
        masked = sum(objective.masked_fraction for objective, _ in results)
        return loss, masked, torch.cat([gap_N for _, gap_N in results])

    def _save(self, saver: AsyncSaver) -> None:
        every, t = self.settings.checkpoint_every, self.loop.iteration
        last = t == self.settings.iterations
        if not last and not (every and t % every == 0):
            return
        position: dict[str, Any] = {"prompts": t * self.settings.prompts_per_iteration}
        if self.pretraining is not None:
            position["pretraining"] = vars(self.pretraining.state())
        toggle = self.toggle.state() if self.toggle is not None else {}
        saver.save(
            self.model.config,
            self.model.state_dict(),
            self.optimizer.named_state(),
            {"loop": vars(self.loop), "data_position": position, "toggle": toggle},
            index=-(-t // every) - 1 if every else 0,
            tokens_seen=self.loop.tokens_seen,
            complete=last,
        )


def as_training_sample(episode: Episode) -> TokenizedSample:
    """An episode for the packer: its policy tokens are the targets."""
    return TokenizedSample(
        torch.tensor(episode.input_ids, dtype=torch.int64),
        torch.tensor(episode.policy_mask, dtype=torch.bool),
        episode.pixel_values,
        episode.grid_thws,
    )


def _parts(rows: list[tuple[Episode, float, float]]) -> Iterator[list[tuple[Episode, float, float]]]:
    part: list[tuple[Episode, float, float]] = []
    size = 0
    for row in rows:
        if part and size + len(row[0].input_ids) > TOKENS_PER_BATCH:
            yield part
            part, size = [], 0
        part.append(row)
        size += len(row[0].input_ids)
    if part:
        yield part


def _figures(
    sample: Sample, episodes: list[Episode], values: list[float], parts: list[dict[str, float]]
) -> Iterator[tuple[str, float]]:
    for episode, value, figures in zip(episodes, values, parts, strict=True):
        yield "reward/mean", episode.reward
        yield f"reward/{sample.ability}", episode.reward
        yield f"reward/{sample.modality}", episode.reward
        yield "reward/trained", value
        yield "accuracy/mean", float(episode.correct)
        yield "tokens/response", float(episode.policy_tokens)
        yield "episode/turns", float(episode.turns)
        yield "episode/answered", float(episode.finish_reason == "answer")
        yield "policy/entropy", -sum(episode.logprobs) / max(1, episode.policy_tokens)
        yield "episode/tool_calls", episode.metrics["tool_calls"]
        yield from figures.items()
