"""Rewards of short texts: exact strings, counts, text that was read (source: K2.5 paper, outcome visual RL).

The paper names counting by absolute difference and OCR by normalised edit distance, but not their exact form. The
closed forms are ours.
"""

from __future__ import annotations

import re
from typing import Any

from model.codec.judge_prompt import read_verdict

_INTEGER = re.compile(r"-?\d+")
MAX_DIGITS = 300  # of an integer in a response: one with more exceeds every float, and is no count (ours)


def normalise(text: str) -> str:
    """Lower case, single spaces, no spaces or punctuation around it. Rewards compare texts in this form."""
    return " ".join(text.casefold().split()).strip(" .,;:!\"'`")


def exact(response: str, answer: Any) -> float:
    """1 if the normalised strings are equal, else 0."""
    return float(normalise(response) == normalise(str(answer)))


def last_line(response: str, answer: Any) -> float:
    """Verdicts of a judge: 1 if the last line is the answer, as a judge is read, else 0. What stands above is free."""
    return float(read_verdict(response, (str(answer),)) is not None)


def number(response: str, answer: Any) -> float:
    """Counting: 1 - |n - truth| / max(1, |truth|), at least 0, for a response with exactly one integer n; else 0."""
    truth = int(answer)
    found = _INTEGER.findall(response)
    if len(found) != 1 or len(found[0]) > MAX_DIGITS:  # or the best of a list of guesses would count
        return 0.0
    return max(0.0, 1.0 - abs(int(found[0]) - truth) / max(1, abs(truth)))


def edit(response: str, answer: Any) -> float:
    """OCR: 1 - Levenshtein distance / length of the longer of the two normalised strings."""
    left, right = normalise(response), normalise(str(answer))
    longer = max(len(left), len(right))
    return 1.0 - edit_distance(left, right) / longer if longer else 1.0


def edit_distance(left: str, right: str) -> int:
    """Levenshtein distance, with one step per character of the longer string.

    A column of the table of distances is kept as the bits in which it rises and falls from one cell to the next
    (Myers, J. ACM 46, 1999, as Hyyrö simplified it, 2003), so that the integers of Python do a column at once.
    """
    text, pattern = (left, right) if len(left) >= len(right) else (right, left)
    if not pattern:
        return len(text)
    where: dict[str, int] = {}
    for position, character in enumerate(pattern):
        where[character] = where.get(character, 0) | 1 << position
    every, last = (1 << len(pattern)) - 1, 1 << (len(pattern) - 1)
    rises, falls, distance = every, 0, len(pattern)
    for character in text:
        same = where.get(character, 0)
        below = same | falls
        diagonal = (((same & rises) + rises) ^ rises) | same
        right_rises, right_falls = falls | (every & ~(diagonal | rises)), rises & diagonal
        distance += bool(right_rises & last) - bool(right_falls & last)
        right_rises, right_falls = every & (right_rises << 1 | 1), every & right_falls << 1
        rises, falls = right_falls | (every & ~(below | right_rises)), right_rises & below
    return distance


def says(response: str, answer: Any) -> float:
    """Open answers: 1 if the response has the words of ``answer["says"]`` and none of ``answer["not"]``, else 0.

    Words do not count inside of other words, nor does case; nor does a number inside of a longer one, "5" in "-1,5.5".
    What the answer has besides is left to a judge.

    Args:
        answer: ``{"says": text, "not": [text, ...]}``; a list, or the best of several guesses would count.
    """
    found = [_has_words(response, str(words)) for words in (answer["says"], *answer["not"])]
    return float(found[0] and not any(found[1:]))


def _has_words(text: str, words: str) -> bool:
    joined = r"\s+".join(re.escape(word) for word in words.casefold().split())
    before = r"(?<![\w\-−])(?<!\d[.,])" if words[:1].isdigit() else r"(?<!\w)"
    after = r"(?!\w|[.,]\d)" if words[-1:].isdigit() else r"(?!\w)"
    return re.search(f"{before}{joined}{after}", text.casefold()) is not None
