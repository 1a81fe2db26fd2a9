"""What a judge is asked, and how its verdict is read (source: generative reward models of the K2.5 paper; form ours).

A prompt for a judge quotes texts that others wrote, and the answer that it quotes may be hostile. Each line of a quote
begins with ``|`` and no other line does, so no quoted text can end its quote, forge a heading or add a rubric. Quotes
are plain text: the tokenizer never makes control tokens of a text. Servers of other models may, so the names of our
control tokens are broken up too.

A judge writes what decides, then its verdict alone on the last line. Only that line is read: what stands above it may
quote an answer, and with it any verdict that the answer names.

Training data for judges and reinforcement learning both make their prompts here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from model.boundary.untrusted_text import shown, well_formed
from model.codec.chat import Message

PAIR = ("A", "B")
"""Verdicts about two answers: which one is better."""
MEETS = ("yes", "no")
"""Verdicts about one answer: whether it meets the rubric."""
MOST = 4_000  # characters of a quote: longer ones are cut, and the prompt says so (ours)
MARK = "|"
CUT = "(The rest is left out.)"

_LINE_END = re.compile("\r\n|[\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029]")  # as str.splitlines
_CONTROL = re.compile(r"<(?=\||/?think)", re.IGNORECASE)


def quoted(text: str) -> str:
    """Lines that quote ``text``: each begins with MARK. If it is longer than MOST characters, a line CUT follows."""
    kept = _CONTROL.sub("< ", well_formed(text[:MOST]))
    lines = "\n".join(MARK + line for line in _LINE_END.split(kept))
    return lines if len(text) <= MOST else f"{lines}\n{CUT}"


def pair_prompt(question: str, first: str, second: str, rubric: str) -> list[Message]:
    """Asks which of two answers is better by the rubric: a verdict of PAIR, A for the first."""
    parts = [
        f"Question:\n{quoted(question)}",
        f"Answer A:\n{quoted(first)}",
        f"Answer B:\n{quoted(second)}",
        f"Rubric: {_line(rubric)}\nWhich answer is better? Quote what decides. The last line is A or B.",
    ]
    return [{"role": "user", "content": "\n".join(parts)}]


def rubric_prompt(question: str, answer: str, rubric: str) -> list[Message]:
    """Asks whether an answer meets the rubric: a verdict of MEETS."""
    parts = [
        f"Question:\n{quoted(question)}",
        f"Answer:\n{quoted(answer)}",
        f"Rubric: {_line(rubric)}\nDoes the answer meet it? Quote what decides. The last line is yes or no.",
    ]
    return [{"role": "user", "content": "\n".join(parts)}]


def read_verdict(text: str, verdicts: Sequence[str]) -> str | None:
    """The verdict that is all of the last line of ``text``; None if there is none.

    Case does not matter, nor do blanks, full stops and asterisks around it: general models write "Yes." and "**no**".
    A line that has anything else is none: it may quote an answer, or only repeat what it was told to say.
    """
    said = _LINE_END.split(text.rstrip())[-1].strip()
    bare = said.strip(".*").casefold()
    return next((verdict for verdict in verdicts if said == verdict or bare == verdict.casefold()), None)


def _line(rubric: str) -> str:
    return shown(" ".join(rubric.split()), MOST)
