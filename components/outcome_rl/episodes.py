"""Episodes of joint RL for people to read: of some rounds, a page with a few of each ability and modality (ours).

At most ROUNDS + 1 rounds are shown: the first, the last, and others evenly between them. Of each ability and modality
that a round has, the page shows the first episodes with the highest and with the lowest reward.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from components.runtime.pages.rollouts import PlayedEpisode, Turn, rendered
from components.runtime.step import StepContext
from model.codec.chat import AssistantTurn, parse_assistant
from model.codec.tokenizer import Tokenizer
from model.data.samples.sample import ABILITIES, MODALITIES, Sample
from model.rl.environment import Episode
from model.rl.groups import Group
from model.rl.successes import ranges

FOLDER = "episodes"
"""Of the step's MLflow run."""
ROUNDS = 10
NOTE = (
    "Of each ability and modality, the first episodes with the highest and the lowest reward of the round. What the "
    "policy wrote is shown as it was sampled; special tokens have their names."
)


def shown_rounds(iterations: int) -> list[int]:
    """The rounds whose episodes are shown, the first round of all being 1."""
    apart = -(-iterations // ROUNDS)
    return sorted({1, *range(iterations, 0, -apart)})


class EpisodePages:
    """Keeps pages of the rounds that are shown. It is a `model.rl.trainer.Watch`."""

    def __init__(self, context: StepContext, tokenizer: Tokenizer, iterations: int) -> None:
        self._context, self._tokenizer, self._rounds = context, tokenizer, frozenset(shown_rounds(iterations))

    def __call__(self, t: int, groups: Sequence[Group]) -> None:
        if t not in self._rounds or not self._context.ranks.first:
            return
        shown = {
            f"{ability}, {modality}": [played(*each, self._tokenizer) for each in chosen(found)]
            for ability in ABILITIES
            for modality in MODALITIES
            if (found := [g for g in groups if (g.sample.ability, g.sample.modality) == (ability, modality)])
        }
        page = rendered(f"Episodes of round {t}", NOTE, shown)
        if page is not None:
            self._context.log_file(f"{FOLDER}/round-{t:05d}.html", page)


def chosen(groups: Sequence[Group]) -> list[tuple[Sample, Episode, float]]:
    """The first episode with the highest reward and, if it is lower, the first one with the lowest: (task, episode,
    advantage)."""
    found = [
        (group.sample, episode, advantage)
        for group in groups
        for episode, advantage in zip(group.episodes, group.advantages, strict=True)
    ]
    best, worst = (choose(found, key=lambda each: each[1].reward) for choose in (max, min))
    return [best, worst] if worst[1].reward < best[1].reward else [best]


def played(task: Sample, episode: Episode, advantage: float, tokenizer: Tokenizer) -> PlayedEpisode:
    """An episode as its page shows it."""
    figures = {"reward": episode.reward, "advantage": advantage, **episode.metrics}
    return PlayedEpisode(
        about={"task": f"{task.family}/{task.key}", "turns": str(episode.turns)},
        asked=list(_asked(task)),
        media=[content for _, content in sorted(task.media.items())],
        turns=list(_turns(task, episode, tokenizer)),
        expected=_text(task.answer),
        outcome=episode.finish_reason,
        right=episode.correct,
        figures={name: value for name, value in figures.items() if math.isfinite(value)},
    )


def _asked(task: Sample) -> Iterator[tuple[str, str]]:
    """The turns before the first of the assistant, with a word for each picture."""
    for message in task.messages:
        if message.get("role") == "assistant":
            return
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
        yield str(message.get("role")), " ".join(part.get("text", f"[{part['type']}]") for part in parts)


def _turns(task: Sample, episode: Episode, tokenizer: Tokenizer) -> Iterator[Turn]:
    """What the policy sampled, and what it was told in between, from the tokens themselves."""
    before = None
    opened = [tokenizer.token_id("<think>")] if task.thinks else []
    for begin, end in ranges(episode.policy_mask):
        if before is not None:
            yield Turn(0, [("text", tokenizer.decode(episode.input_ids[before:begin]))])
        sampled = episode.input_ids[begin:end]
        yield Turn(len(sampled), list(_parts(parse_assistant([*opened, *sampled], tokenizer), sampled, tokenizer)))
        before = end


def _parts(turn: AssistantTurn, sampled: Sequence[int], tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    if turn.error is not None:
        yield "text", tokenizer.decode(sampled)
        yield "fault", turn.error
        return
    if turn.reasoning:
        yield "thinking", turn.reasoning
    if turn.content or not turn.tool_calls:
        yield "text", turn.content
    for call in turn.tool_calls:
        yield f"calls {call.name}", "\n".join(f"{name}: {_text(value)}" for name, value in call.arguments.items())


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
