"""What a user writes, a `Task`, and what becomes of its prompts, a `TaskSample` (source: ours).

A task needs no import of ours: its prompts are dictionaries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NotRequired, Protocol

from typing_extensions import TypedDict

from model.data.samples.sample import Sample, Split

TIMEOUT_S = 10.0
MAX_NEW_TOKENS = 64
MAX_TURNS, MAX_TURNS_WITH_TOOLS = 1, 4


class Turn(TypedDict):
    """``content``: a text, or a list of texts and images. An image is one of PIL, an array uint8 [H, W] or [H, W, 3],
    or the bytes of a file."""

    role: str
    content: Any


class Environment(TypedDict, total=False):
    """What the tools find: ``array``, a picture, or ``images``, several of one size, for ipython; ``records``, text by
    key, for search."""

    array: Any
    images: list[Any]
    records: dict[str, str]


class Prompt(TypedDict):
    """One prompt.

    Attributes:
        messages: what the model is asked: turns of the roles system and user.
        answer: the truth, as JSON can hold it, for people who read the samples and for the level of chance.
        tools: names of tools that the model may call: ipython, search.
        environment: what they find.
        rubric: what a judge should look at, an alternative on each line (``model.rl.judges``).
    """

    messages: list[Turn]
    answer: NotRequired[Any]
    tools: NotRequired[list[str]]
    environment: NotRequired[Environment]
    rubric: NotRequired[str]


class Task(Protocol):
    """A task. These attributes are optional:

    - ``ability``: knowledge, reasoning (the default), coding or agentic, where it counts in tables.
    - ``count(split)``: a method, how many prompts there are; without it, there is one for every index.
    - ``max_new_tokens``: of a completion, 64 by default; ``max_turns``: completions of an episode, 1 by default, 4 with
      tools.
    - ``timeout_s``: seconds that ``prompt`` and ``verify`` may take, 10 by default.
    - ``chance``: the score of a guess. Without it, it is that of the best constant answer.
    - ``reward``: a built-in reward (`model.rl.rewards`) that compares the response with the prompt's ``answer``, in
      place of ``verify``.
    """

    def prompt(self, seed: int, split: str, index: int) -> Prompt:
        """The prompt of an index, the same whenever it is asked for. ``split`` is "train" or "eval"."""
        ...

    def verify(self, response: str, prompt: Prompt) -> float | dict[str, float]:
        """The score of a final answer, in [0, 1]; or a dictionary with ``score`` and any named parts of it."""
        ...


@dataclass(frozen=True)
class About:
    """What a task says of itself, as it is checked.

    Attributes:
        counts: split -> number of prompts; None: without end.
        chance: the score of a guess; None: it is to be measured.
        timeout_s: seconds.
        reward: the built-in reward that judges; "": the task's own verifier does.
    """

    ability: str
    counts: dict[str, int | None]
    max_new_tokens: int
    max_turns: int | None
    timeout_s: float
    chance: float | None
    reward: str = ""


@dataclass(frozen=True)
class TaskSample(Sample):
    """A prompt of a user's task. ``family`` is the short name of the task and ``reward`` its whole name.

    Attributes:
        seed, split, index: the prompt's arguments, from which the verifier's process makes it again.
        max_new_tokens, max_turns: limits of its episodes.
        judged_by: as ``About.reward``.
    """

    seed: int = 0
    split: Split = "train"
    index: int = 0
    max_new_tokens: int = MAX_NEW_TOKENS
    max_turns: int = MAX_TURNS
    judged_by: str = ""
