"""What decides a verdict, as a judge writes it before the verdict (source: ours; the K2.5 paper has generative reward
models, and does not say what they write).

    asked:Well                 what is wished for, as the rubric or the records have it; left out where nothing is named
    found:Sure                 what the answer has instead of it, or ``none``
    no                         the verdict

Of two answers there are such lines for each, headed ``A`` and ``B``, and the verdict comes last. Of a rubric that names
several things there are such lines for each, and last a verdict on all of them. Whatever stands behind
a colon is copied as it stands, with the space before it if it has one: a word has other tokens behind a space, and what
a tiny model learns well is to copy tokens and to compare them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from model.codec.judge_prompt import MEETS, PAIR
from model.data.families.judging.drafts import Draft
from model.data.families.judging.wishes import Wish

NONE = "none"
_SMALL = re.compile(r" ?\w*[a-z]\w*")


def _first_word(draft: Draft, _: Wish) -> str:
    begun = re.match(r"\w+", draft.text)
    return begun[0] if begun else NONE


def _last_mark(draft: Draft, wish: Wish) -> str:
    return draft.text[-len(wish.checked) :]


def _marked(draft: Draft, _: Wish) -> str:
    return draft.marked if draft.text.startswith(draft.marked) else f" {draft.marked}"


def _name(draft: Draft, wish: Wish) -> str:
    return wish.shown if wish.met(draft.text) else NONE


def _reason(draft: Draft, wish: Wish) -> str:
    return f" because {wish.checked}" if wish.met(draft.text) else NONE


def _words(draft: Draft, wish: Wish) -> str:
    """The answer's words with their numbers, up to the first that is too many."""
    words = re.findall(r" ?\S+", draft.text)[: int(wish.checked) + 1]
    return "".join(f"{number}{word}" for number, word in enumerate(words, 1))


def _small(draft: Draft, _: Wish) -> str:
    """The first word that has a small letter."""
    word = _SMALL.search(draft.text)
    return word[0] if word else NONE


def _unit(draft: Draft, wish: Wish) -> str:
    return f" {wish.shown}" if wish.met(draft.text) else NONE


def _value(draft: Draft, _: Wish) -> str:
    return draft.fact.value


FOUND: Mapping[str, Callable[[Draft, Wish], str]] = {
    "begin": _first_word,
    "end": _last_mark,
    "brackets": _marked,
    "name": _name,
    "reason": _reason,
    "short": _words,
    "capitals": _small,
    "unit": _unit,
    "relevant": _value,
}
"""Kind of wish -> what an answer has that decides it."""


def _asked(wish: Wish) -> list[str]:
    named = wish.checked if wish.kind == "relevant" else wish.shown
    return [f"asked:{named}"] if named else []


def _verdict(draft: Draft, wish: Wish) -> str:
    return MEETS[0] if wish.met(draft.text) else MEETS[1]


def rubric_judged(wishes: Sequence[Wish], draft: Draft) -> str:
    """All that a judge writes of an answer and a rubric of these wishes: grounds, last a verdict of MEETS on all."""
    lines = list[str]()
    for wish in wishes:
        lines += [*_asked(wish), f"found:{FOUND[wish.kind](draft, wish)}", _verdict(draft, wish)]
    if len(wishes) > 1:
        lines.append(MEETS[0] if all(wish.met(draft.text) for wish in wishes) else MEETS[1])
    return "\n".join(lines)


def pair_judged(wish: Wish, first: Draft, second: Draft) -> str:
    """All that a judge writes of two answers, of which one meets the wish: grounds, and a verdict of PAIR."""
    lines = _asked(wish)
    for name, draft in zip(PAIR, (first, second), strict=True):
        lines += [f"{name}:{FOUND[wish.kind](draft, wish)}", _verdict(draft, wish)]
    return "\n".join([*lines, PAIR[0] if wish.met(first.text) else PAIR[1]])
