"""What an answer may be wished to be like: how a question asks for it, how a rubric says it, and the program that
checks it exactly (source: the paper's aims of judges, instruction following, relevance, helpfulness and detail; the
wishes are ours)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

OPENERS = (
    "Well", "So", "Sure", "Yes", "Here", "Look", "Now", "Right", "Good", "Fine", "True", "Okay", "Indeed", "Surely",
    "Simply", "Listen", "Hello", "Please", "First", "Again", "Then", "Next", "Today", "Once", "Still", "Just", "Oh",
    "See", "Note", "Maybe", "Clearly", "Also", "Thanks",
)  # fmt: skip
ENDINGS = ("!", ";", "^", "@", "&", "%", "$", "~", "*", "+", "/", "#")
BRACKETS = ("[]", "**", "<>", "++", "//", "^^", "&&", "%%", "@@", "$$", "~~", "{}")
"""Marks that are tokens of their own behind a value, and alone: a tiny model compares tokens."""
UNITS = {"population": "people", "area": "km2", "mass": "u", "year": "AD"}
"""Field of a record -> the unit of its values."""
WORDS = (2, 3, 4)
"""How many words a short answer may have."""


@dataclass(frozen=True)
class Wish:
    """One wish for one answer.

    Attributes:
        kind: one of KINDS.
        shown: what its texts name, e.g. the word that the answer shall begin with; "" if they name nothing.
        checked: what its program looks for.
        sought: what an answer is compared with, as it stands in the prompt; "" if that is nothing.
        record: the record that has it; "" if none does.
    """

    kind: str
    shown: str
    checked: str
    sought: str = ""
    record: str = ""

    def met(self, answer: str) -> bool:
        """Whether an answer is as wished."""
        return KINDS[self.kind].met(answer, self.checked)


@dataclass(frozen=True)
class Kind:
    """One kind of wish.

    Attributes:
        requests: of the question; none: every question asks for it anyway. Training never shows the last one.
        rubrics: what a judge is told. Training never shows the last one.
        met: (answer, what is looked for) -> whether it is as wished.
        against: kinds that cannot be wished for at the same time.
    """

    requests: tuple[str, ...]
    rubrics: tuple[str, ...]
    met: Callable[[str, str], bool]
    against: tuple[str, ...] = ()


def has_words(text: str, words: str) -> bool:
    """Whether ``words`` stand in ``text``, not inside of other words; case does not matter."""
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE) is not None


def _begins(answer: str, word: str) -> bool:
    return re.match(rf"{re.escape(word)}(?!\w)", answer.lstrip(), re.IGNORECASE) is not None


def _ends(answer: str, mark: str) -> bool:
    return answer.rstrip().endswith(mark)


def _bracketed(answer: str, pair: str) -> bool:
    opened, closed = (re.escape(mark) for mark in pair)
    return re.search(rf"{opened}[^\s{opened}{closed}][^{opened}{closed}]*{closed}", answer) is not None


def _reasoned(answer: str, record: str) -> bool:
    said = re.search(rf"\bbecause\b.*{re.escape(record)}(?!\w)", answer, re.IGNORECASE)
    return said is not None and len(answer.split()) <= 30


def _short(answer: str, words: str) -> bool:
    return 0 < len(answer.split()) <= int(words)


def _capital(answer: str, _: str) -> bool:
    """Figures alone have no small letters either."""
    return bool(answer.strip()) and answer == answer.upper()


def _tells(answer: str, value: str) -> bool:
    return has_words(answer, value)


KINDS: Mapping[str, Kind] = {
    "begin": Kind(
        ('Begin with "{x}".', 'Let it open with "{x}".', 'Start with "{x}".', 'Let "{x}" come first.',
         'Open with "{x}".'),
        ('It begins with "{x}".', 'Its text opens with "{x}".', 'It starts with "{x}".', 'Its first word is "{x}".',
         'The answer begins with "{x}".', '"{x}" is its first word.', 'The first word is "{x}".',
         'The text starts with "{x}".', '"{x}" comes first in it.', 'It has "{x}" as its first word.',
         'It opens with "{x}".'),
        _begins,
        against=("capitals",),
    ),
    "end": Kind(
        ('End with "{x}".', 'Let it finish with "{x}".', 'Close with "{x}".', 'Put "{x}" at the end.',
         'Finish with "{x}".'),
        ('It ends with "{x}".', 'Its text finishes with "{x}".', 'It closes with "{x}".', 'At its end is "{x}".',
         'The answer ends with "{x}".', '"{x}" is at its end.', 'It has "{x}" at the end.',
         'The text closes with "{x}".', 'Its last mark is "{x}".', 'The last mark is "{x}".',
         'It finishes with "{x}".'),
        _ends,
    ),
    "brackets": Kind(
        ('Put the value in "{x}".', 'Use "{x}" around the value.', 'The value goes into "{x}".', 'Value in "{x}".'),
        ('The value is in "{x}".', 'It has "{x}" around the value.', 'It puts the value in "{x}".',
         '"{x}" stands around the value.', 'Around the value is "{x}".', '"{x}" is around the value.',
         'Its value is in "{x}".', 'It gives the value in "{x}".', 'The text puts the value in "{x}".',
         'The value stands in "{x}".'),
        _bracketed,
    ),
    "name": Kind(
        ('Name "{x}".', 'Say the name "{x}".', '"{x}" shall be there by name.', 'Mention "{x}".',
         'The name "{x}" shall be there.'),
        ('It names "{x}".', 'It has the name "{x}".', 'There is "{x}" in it.', 'It mentions "{x}".',
         'The answer names "{x}".', '"{x}" is named in it.', '"{x}" is there by name.', 'The text has the name "{x}".',
         'It says the name "{x}".', 'The name "{x}" is in it.',
         'The name "{x}" is there.'),
        has_words,
        against=("short", "capitals"),
    ),
    "reason": Kind(
        ("Give the reason.", "Say why.", "Answer with a reason.", "Tell how you know it.", "With the reason."),
        ("It gives the reason.", "It says why.", "There is a reason.", "It tells how this is known.",
         "The answer gives the reason.", "It has a reason.", "It tells the reason.", "The text says why.",
         "The reason is in it.", "The reason is told.",
         "The reason is there."),
        _reasoned,
        against=("short", "capitals", "relevant"),  # of another value there is another reason
    ),
    "short": Kind(
        ("Use at most {x} words.", "Use up to {x} words.", "No more than {x} words.", "{x} words at most.",
         "Up to {x} words."),
        ("It has at most {x} words.", "It takes up to {x} words.", "It has no more than {x} words.",
         "It takes {x} words at most.", "The answer has at most {x} words.", "It is at most {x} words long.",
         "It has {x} words at most.", "The text takes up to {x} words.", "No more than {x} words are in it.",
         "It needs no more than {x} words.",
         "It has up to {x} words."),
        _short,
        against=("name", "reason"),
    ),
    "capitals": Kind(
        ("Use capitals only.", "Please write capitals.", "Write in capitals.", "All letters in capitals.",
         "Capitals, please."),
        ("It has capitals only.", "It is in capitals.", "All its letters are capitals.", "The answer is in capitals.",
         "All letters are capitals.", "It is written in capitals.", "The text has capitals only.",
         "Its letters are all capitals.", "Only capitals are in it.",
         "It is all capitals."),
        _capital,
        against=("begin", "name", "reason", "unit"),  # their words are wished for as they are written
    ),
    "unit": Kind(
        ('With the unit "{x}".', 'Give it in "{x}".', 'Write the unit "{x}".', 'Add the unit "{x}".',
         'Give the unit "{x}".'),
        ('It has the unit "{x}".', 'It gives it in "{x}".', 'It writes the unit "{x}".', 'The unit "{x}" is there.',
         'The answer has the unit "{x}".', 'It tells the unit "{x}".', 'Its unit is "{x}".', 'The unit is "{x}".',
         'The text gives it in "{x}".', 'The unit "{x}" is in it.',
         'It gives the unit "{x}".'),
        has_words,
        against=("capitals",),
    ),
    "relevant": Kind(
        (),
        ('It tells the {x}.', 'Its text gives the {x}.', 'It answers which {x}.', 'The {x} is told.',
         'The answer tells the {x}.', 'It says the {x}.', 'It has the {x}.', 'The text tells the {x}.',
         'The {x} is in it.', 'The {x} is there.',
         'It gives the {x}.'),
        _tells,
    ),
}  # fmt: skip


def compatible(kind: str, others: Sequence[str]) -> bool:
    """Whether a kind can be wished for together with others."""
    return kind not in others and not set(KINDS[kind].against) & set(others)
