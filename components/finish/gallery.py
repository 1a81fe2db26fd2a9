"""The report's gallery: held-out tasks with the answers of three checkpoints side by side; ``gallery.html`` shows it.

It is made from ``gallery.json`` of the evaluation. Its texts were written by models and tools: the template escapes
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.runtime.pages.episode import NO_ANSWER as AGENT_WITHOUT_ANSWER

SFT = "zero_vision_sft"
NO_ANSWER = AGENT_WITHOUT_ANSWER | {"failed": "the episode broke"}
"""Why an episode has no answer; any other reason is shown as it is."""


@dataclass(frozen=True)
class Outcome:
    """Whether an answer is right, so that it can be told without colour.

    Attributes:
        sign: one character.
        words: what it means.
        css: the class of its colour.
    """

    sign: str
    words: str
    css: str


RIGHT, WRONG = Outcome("✓", "right", "yes"), Outcome("✗", "wrong", "no")


@dataclass(frozen=True)
class Column:
    """What one checkpoint did with a task.

    Attributes:
        label: of the checkpoint.
        outcome: None if the checkpoint was not asked.
        answer: "" if there is none; then ``why`` says why.
        turns: ``{"role", "tool", "text"}`` each; ``more`` are left out after them.
    """

    label: str
    outcome: Outcome | None
    answer: str = ""
    why: str = ""
    turns: Sequence[Mapping[str, str]] = ()
    more: int = 0


@dataclass(frozen=True)
class Example:
    """A task with its columns; the fields of the task are those of `model.evals.examples.Task`."""

    task: Mapping[str, Any]
    columns: Sequence[Column]


@dataclass(frozen=True)
class Folder:
    """The examples of one suite; ``outcomes``: label of a checkpoint -> the signs of its answers."""

    name: str
    outcomes: Mapping[str, str]
    examples: Sequence[Example]


def folders(gallery: Mapping[str, Any], label: Callable[[str], str]) -> list[Folder]:
    """The suites of a gallery in its order.

    Args:
        gallery: the content of ``gallery.json``; may be empty.
        label: step -> what the report calls its checkpoint.
    """
    steps = list(gallery.get("steps", ()))
    titles = {step: _title(step, steps, label(step)) for step in steps}
    found = []
    for suite, cards in gallery.get("suites", {}).items():
        examples = [
            Example(card, [_column(titles[step], card["attempts"].get(step)) for step in steps]) for card in cards
        ]
        rows = zip(*(example.columns for example in examples), strict=True)
        signs = {row[0].label: "".join(c.outcome.sign for c in row if c.outcome) or "–" for row in rows}
        found.append(Folder(suite.replace("_", " "), signs, examples))
    return found


def _title(step: str, steps: Sequence[str], label: str) -> str:
    """``before SFT (mid-train)``, ``after SFT``, ``final (PARL)``; the label alone for another checkpoint."""
    if SFT in steps and step == SFT:
        return "after SFT"
    if SFT in steps and steps.index(step) < steps.index(SFT):
        return f"before SFT ({label})"
    return f"final ({label})" if step == steps[-1] else label


def _column(label: str, attempt: Mapping[str, Any] | None) -> Column:
    if attempt is None:
        return Column(label, None)
    score, ended = float(attempt["score"]), str(attempt["ended"])
    outcome = RIGHT if score == 1.0 else WRONG
    if 0.0 < score < 1.0:
        outcome = Outcome("≈", f"{score:.2f} of 1", "part")
    why = "" if ended == "answer" else NO_ANSWER.get(ended, ended)
    if attempt["failure"]:
        why = f"{why}: {attempt['failure']}" if why else ""
    return Column(label, outcome, attempt["response"], why, attempt["turns"], int(attempt["more"]))
