"""What decides a verdict, as a judge writes it before the verdict (source: ours; the K2.5 paper has generative reward
models, and does not say what they write).

    record:Bulgaria: capital=Sofia; area=110910   the record that has what is asked for; left out where none has
    asked:capital=Sofia                           what is asked for, as the rubric or the record has it; left out where
                                                  nothing is named
    found:Sure, "Sofia                            the answer from its beginning up to what decides
    yes                                           the verdict

This is what is said of ``Sure, "Sofia";`` by the rubric ``It tells the capital of "Bulgaria".``

Of two answers there are such lines for each, headed ``A`` and ``B``, and the verdict comes last. Of a rubric that names
several things there are such lines for each, and last a verdict on all of them. Where words are counted, each has its
number before it, up to the first that is too many.

A tiny model finds a place inside of a text badly, and copies a text from its beginning well; so whatever decides is the
end of a copy. Copies keep the spaces of their original: a word behind a space has other tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from model.codec.judge_prompt import MEETS, PAIR
from model.data.families.judging.drafts import Draft
from model.data.families.judging.wishes import Wish

_FIRST = re.compile(r"\W*\w+")
_SMALL = re.compile(r".*?\w*[a-z]\w*")
_NEXT = re.compile(r" \w+")


def _up_to(text: str, part: str) -> str:
    return text[: text.index(part) + len(part)]


def _first_word(draft: Draft, _: Wish) -> str:
    begun = _FIRST.match(draft.text)
    return begun[0] if begun else draft.text


def _all(draft: Draft, _: Wish) -> str:
    return draft.text


def _marked(draft: Draft, _: Wish) -> str:
    return _up_to(draft.text, draft.marked)


def _value(draft: Draft, _: Wish) -> str:
    return _up_to(draft.text, draft.marked[:-1])


def _name(draft: Draft, wish: Wish) -> str:
    return _up_to(draft.text, wish.shown) if wish.met(draft.text) else _value(draft, wish)


def _after_value(draft: Draft, wish: Wish) -> str:
    """Units follow values: up to the word that does."""
    read = _marked(draft, wish)
    following = _NEXT.match(draft.text, len(read))
    return read + following[0] if following else read


def _reason(draft: Draft, wish: Wish) -> str:
    return _up_to(draft.text, f"because {wish.checked}") if wish.met(draft.text) else draft.text


def _words(draft: Draft, wish: Wish) -> str:
    words = re.findall(r" ?\S+", draft.text)[: int(wish.checked) + 1]
    return "".join(f"{number}{word}" for number, word in enumerate(words, 1))


def _small(draft: Draft, _: Wish) -> str:
    """Up to the first word that has a small letter."""
    read = _SMALL.match(draft.text)
    return read[0] if read else draft.text


FOUND: Mapping[str, Callable[[Draft, Wish], str]] = {
    "begin": _first_word,
    "end": _all,
    "brackets": _marked,
    "name": _name,
    "reason": _reason,
    "short": _words,
    "capitals": _small,
    "unit": _after_value,
    "relevant": _value,
}
"""Kind of wish -> what is copied of an answer."""


def _asked(wish: Wish) -> list[str]:
    lines = {"record": wish.record, "asked": wish.sought}
    return [f"{name}:{text}" for name, text in lines.items() if text]


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
