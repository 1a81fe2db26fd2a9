"""The episodes of a prompt as a group: their rewards, which Toggle shapes, their advantages, and figures of the policy
(source: K2.5 paper, Eq. 1 and Toggle)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from model.data.samples.sample import Sample
from model.rl.environment import FAILED, PART, Episode
from model.rl.judges.reward import FIGURES
from model.rl.objective import advantages, token_weights
from model.rl.tasks.task import TaskSample
from model.rl.toggle import Toggle

Reward = Callable[[int, Episode], tuple[float, dict[str, float]]]
"""(iteration, episode) -> what is trained on, and its parts as metrics."""


def outcome(iteration: int, episode: Episode) -> tuple[float, dict[str, float]]:
    """The outcome alone."""
    return episode.reward, {}


@dataclass(frozen=True)
class Group:
    """The episodes of one prompt that did not fail, each with the advantage that it is trained with."""

    sample: Sample
    episodes: list[Episode]
    advantages: list[float]

    @property
    def has_signal(self) -> bool:
        """Whether the rewards differ."""
        return any(self.advantages)


def rewarded_groups(
    iteration: int,
    samples: Sequence[Sample],
    episodes: Sequence[Sequence[Episode]],
    reward: Reward,
    toggle: Toggle | None,
) -> tuple[list[Group], dict[str, float]]:
    """The groups of one iteration, and means over their episodes as figures.

    An episode that failed says nothing about the policy: rewards, advantages, lengths and figures are those of the
    others of its group, and a group without others is left out.

    Args:
        episodes: of each sample.
        toggle: measures the length budgets of the prompts and shapes the rewards; None leaves the rewards as they are.
    """
    groups: list[Group] = []
    parts: dict[str, list[float]] = {}
    for sample, played in zip(samples, episodes, strict=True):
        members = [episode for episode in played if episode.finish_reason != FAILED]
        if not members:
            continue
        rewarded = [reward(iteration, episode) for episode in members]
        values, lengths = [value for value, _ in rewarded], [episode.policy_tokens for episode in members]
        if toggle is not None:
            prompt = f"{sample.family}/{sample.key}"
            toggle.measure(prompt, lengths, [episode.correct for episode in members])
            values = toggle.shape(iteration, prompt, values, lengths)
        groups.append(Group(sample, members, advantages(values)))
        for key, value in _figures(sample, members, values, [figures for _, figures in rewarded]):
            parts.setdefault(key, []).append(value)
    figures = {key: float(np.mean(values)) for key, values in parts.items()}
    figures |= _pass_at(groups)
    if toggle is not None:
        figures["toggle/budget_phase"] = float(toggle.budget_phase(iteration))
    return groups, figures


def trained_episodes(groups: Sequence[Group]) -> list[tuple[Episode, float, float]]:
    """The episodes that have something to teach, each with its advantage and its tokens' weight.

    Groups whose rewards are all equal have no advantage and are left out; the normalisation still counts them.
    """
    weights = token_weights([[episode.policy_tokens for episode in group.episodes] for group in groups])
    return [
        (episode, advantage, weight)
        for group, group_weights in zip(groups, weights, strict=True)
        for episode, advantage, weight in zip(group.episodes, group.advantages, group_weights, strict=True)
        if group.has_signal and episode.policy_tokens
    ]


def pass_at(k: int, n: int, correct: int) -> float:
    """The chance that of k samples at least one is right, where ``correct`` of n were: 1 - C(n - correct, k) / C(n, k).

    It is the mean over all choices of k of the n samples, so it is unbiased (Chen et al., arXiv 2107.03374).
    """
    return 1.0 - comb(n - correct, k) / comb(n, k)


def _pass_at(groups: Sequence[Group]) -> dict[str, float]:
    """``accuracy/pass_at_<k>`` for k = 1, 2, 4 ... and the largest group's size: means over the prompts that have k
    episodes."""
    tried = [(len(group.episodes), sum(episode.correct for episode in group.episodes)) for group in groups]
    most = max((n for n, _ in tried), default=0)
    sizes = sorted({most, *(2**power for power in range(most.bit_length()))}) if most else []
    return {
        f"accuracy/pass_at_{k}": float(np.mean([pass_at(k, n, correct) for n, correct in tried if n >= k]))
        for k in sizes
    }


def _figures(
    sample: Sample, episodes: list[Episode], values: list[float], parts: list[dict[str, float]]
) -> Iterator[tuple[str, float]]:
    for episode, value, figures in zip(episodes, values, parts, strict=True):
        yield "reward/mean", episode.reward
        yield f"reward/{sample.ability}", episode.reward
        yield f"reward/{sample.modality}", episode.reward
        yield f"reward/{sample.ability}/{sample.modality}", episode.reward
        yield "reward/trained", value
        yield "accuracy/mean", float(episode.correct)
        yield "tokens/response", float(episode.policy_tokens)
        yield "episode/turns", float(episode.turns)
        yield "episode/answered", float(episode.finish_reason == "answer")
        yield "policy/entropy", -sum(episode.logprobs) / max(1, episode.policy_tokens)
        yield "episode/tool_calls", episode.metrics["tool_calls"]
        yield from ((name, episode.metrics[name]) for name in FIGURES if name in episode.metrics)
        own = isinstance(sample, TaskSample)
        if own:
            yield f"reward/task/{sample.family}", episode.reward
        room = f"task/{sample.family}" if own else f"part/{sample.reward}"
        for name in episode.metrics:
            if name.startswith(PART):
                yield f"reward/{room}/{name.removeprefix(PART)}", episode.metrics[name]
        yield from figures.items()
