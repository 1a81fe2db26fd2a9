"""What one sample is, from the generator through the shards to the trainers (source: ours).

A sample is either a *document* (``segments``: the loss covers the text marked so) or a *conversation*
(``messages``: the loss covers the assistant's turns). Tasks for RL and evaluation are conversations with an
``answer`` and the name of the ``reward`` that checks it. A conversation with an ``episode`` is trained on as it was
sampled: the loss covers the tokens of the policy. A sample that is neither or both, or has another form, is refused
where it is read (``model.data.samples.record``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Ability = Literal["knowledge", "reasoning", "coding", "agentic"]
Modality = Literal["text", "image", "video"]
Split = Literal["train", "eval"]

ABILITIES: tuple[Ability, ...] = ("knowledge", "reasoning", "coding", "agentic")
MODALITIES: tuple[Modality, ...] = ("text", "image", "video")


@dataclass(frozen=True)
class Sample:
    """One training or evaluation sample.

    Attributes:
        key: unique within its split; the basename of its files in a shard.
        family: the generator it came from, e.g. ``digit_string``.
        ability, modality: where it counts in mixtures, RL groups and the evaluation table.
        source: the held-out unit, e.g. ``sklearn.digits/1203``; never in both splits.
        segments: ``{"type": "text", "text": str, "loss": bool}`` or ``{"type": "image" | "video", "media": name}``.
        messages: OpenAI-shaped turns. ``content`` is a string or a list of ``{"type": "text", "text": ...}`` and
            ``{"type": "image" | "video", "media": name}`` parts. Assistant turns may carry ``reasoning`` and
            ``tool_calls`` (``[{"name": ..., "arguments": {...}}]``; in a shard the arguments may be a JSON text that
            means the object); tool turns carry ``tool_call_id``.
            ``"loss": False`` on an assistant turn leaves it out of the loss.
        tools: names of the declared tools, as in ``model.codec.tools.TOOLS``.
        declared_tools: declarations of a user's tools in OpenAI's form, which follow ``tools``. Nothing can run them.
        answer: ground truth, JSON-able; its form is what ``reward`` expects.
        reward: name of the verifier, one of ``model.rl.rewards.NAMES``; the README of ``model.rl`` lists them.
        rubric: what a judge should look at in an answer, an alternative on each line (``model.rl.judges``).
        environment: what the task's tools act on: ``{"records": {...}}`` to search, ``{"world": {...}}`` for the
            offline world (``model.data.families.world.index.View``), or ``{"array": ...}`` for programs. An array is
            the name of an image (``img``) or video (``images``) of ``media``, or nested lists of 0-255, [H, W] or
            [H, W, 3]; ``{"images": [...]}`` has several such pictures (``model.rl.tools.toolset.environment_array``).
        episode: what a policy made of the task: ``token_ids``, those of the prompt with all media pads first, and
            ``sampled``, the ranges [begin, end) of those that the policy wrote; ``reward``, ``parts``, ``task``,
            ``round`` and ``seed`` say where it comes from (``model.rl.successes``).
        media: file extension in the shard (``png``, ``1.png``, ``mp4``) -> encoded bytes.
    """

    key: str
    family: str
    ability: Ability
    modality: Modality
    source: str
    segments: list[dict[str, Any]] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[str] = field(default_factory=list)
    declared_tools: list[dict[str, Any]] = field(default_factory=list)
    answer: Any = None
    reward: str = ""
    rubric: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    episode: dict[str, Any] = field(default_factory=dict)
    media: dict[str, bytes] = field(default_factory=dict)

    @property
    def thinks(self) -> bool:
        """Whether the reference answer has visible thinking: as a task, it is then asked in thinking mode."""
        return any(message.get("reasoning") for message in self.messages)

    @property
    def later_questions(self) -> list[dict[str, Any]]:
        """The user's turns after the assistant's first one, in their order: an episode asks each after an answer."""
        roles = [message.get("role") for message in self.messages]
        first = roles.index("assistant") if "assistant" in roles else len(roles)
        return [message for message in self.messages[first:] if message.get("role") == "user"]
