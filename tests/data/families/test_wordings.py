"""Held-out wordings are new sentences of known words: what is measured is a sentence, not a vocabulary."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from model.data.families import coding, programs, thinking
from model.data.families.dialogue import kinds as dialogue
from model.data.families.judging import wishes
from model.data.families.world import wordings as world

WORDINGS = {
    **{f"thinking/{kind.name}": kind.wordings for kind in thinking.KINDS},
    **{f"programs/{kind.name}": kind.wordings for kind in programs.KINDS},
    **{f"coding/{kind.name}": kind.wordings for kind in coding.KINDS},
    **{f"requests/{name}": kind.requests for name, kind in wishes.KINDS.items() if kind.requests},
    **{f"rubrics/{name}": kind.rubrics for name, kind in wishes.KINDS.items()},
    **{f"world/{name}": getattr(world, name) for name in ("WIDE", "EASY", "EASY_PAGE", "DOCUMENT", "BULK", "DEEP")},
    **{f"dialogue/{name}": getattr(dialogue, name) for name in ("ASK", "AND_KEY", "GIVE_KEY", "GIVE_NAME")},
}


def words(wording: str) -> set[str]:
    """The words of a wording, without the names of its fields."""
    return set(re.findall("[a-z]+", re.sub(r"\{\w+\}|\$\w+", " ", wording).lower()))


@pytest.mark.parametrize("name", WORDINGS)
def test_training_shows_every_word_of_a_held_out_wording(name: str) -> None:
    wordings: Sequence[str] = WORDINGS[name]
    *shown, held_out = wordings
    assert held_out not in shown
    assert words(held_out) <= set[str]().union(*map(words, shown)), "what training never shows"
