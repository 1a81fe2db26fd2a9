"""What judges are trained on, and open questions that they judge (source: ours; the aims of judges are the paper's).

``judge_pair`` asks which of two answers is better by a rubric, ``judge_rubric`` whether an answer meets one. A program
knows the truth (`wishes`), so a judge's accuracy can be measured; half of all verdicts are right by chance. Their
prompts are made by the code that reinforcement learning uses (``model.codec.judge_prompt``); the references write what
decides, then the verdict (`grounds`). Some answers speak to their judge, which changes nothing about the truth. A key
names the kind of wish: ``judge_pair-reason-00000012``.

``judge_list`` asks whether an answer meets a rubric of several wishes. It has a verdict on each of them, so that a row
teaches several times as much; half of the wishes are fulfilled, so most rubrics are not.

``open_answer`` asks for a fact in any form, with WISHES wishes. The fact is verifiable (reward ``says``); each wish is
one of the alternative rubrics. Its reference answers fulfil each wish half of the time, so that a policy that learned
from them is free to fulfil it or not. `satisfied` tells which wishes an answer fulfils, whatever a judge said.

Held out: the things that are asked about, and the last of every wording, opener, ending, pair of brackets and plea.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from model.codec.judge_prompt import MEETS, PAIR, pair_prompt, rubric_prompt
from model.data.families.entities import entity_sources
from model.data.families.family import Family, choose
from model.data.families.judging.drafts import Draft, Fact, draw_draft, draw_fact, draw_wish, shaped
from model.data.families.judging.grounds import pair_judged, rubric_judged
from model.data.families.judging.wishes import KINDS, UNITS, Wish, compatible
from model.data.samples.sample import Sample, Split

TELLING = 0.4  # share of such rubrics that ask for the fact, too: to look it up is the hardest to learn (ours)
LISTED = 4  # the most things that a rubric names (ours)
WISHES = 3  # alternative rubrics of an open question (ours)
PLEA = 0.15  # share of the answers that speak to their judge (ours)
DRAFTS = 20  # tries before another question is drawn
OPEN = "open_answer"
TELLS, NOT, WISHED = "says", "not", "wishes"


def draw_kinds(rng: np.random.Generator, fact: Fact, count: int, first: str = "") -> list[str]:
    """Kinds of wishes that a question of this fact can ask for together; ``first`` is one of them."""
    found = [first] if first else []
    for number in rng.permutation(len(KINDS)):
        kind = list(KINDS)[number]
        asked = KINDS[kind].requests and (kind != "unit" or fact.key in UNITS)
        if len(found) < count and asked and compatible(kind, found):
            found.append(kind)
    return found


def _wished(rng: np.random.Generator, split: Split, kind: str, most: int) -> tuple[Fact, list[Wish], str]:
    """A fact, wishes of which the first has this kind, and the question that asks for them."""
    while True:
        fact = draw_fact(rng, split)
        if kind != "unit" or fact.key in UNITS:
            break
    kinds = draw_kinds(rng, fact, int(rng.integers(1, most + 1)), kind)
    wishes = [draw_wish(rng, split, each, fact) for each in kinds]
    return fact, wishes, _asked(rng, split, fact, wishes)


def _asked(rng: np.random.Generator, split: Split, fact: Fact, wishes: list[Wish]) -> str:
    requests = [
        choose(rng, split, KINDS[wish.kind].requests).format(x=wish.shown)
        for wish in (wishes[i] for i in rng.permutation(len(wishes)))
        if KINDS[wish.kind].requests
    ]
    return " ".join([fact.question, *requests])


def _rubric(rng: np.random.Generator, split: Split, wish: Wish) -> str:
    return choose(rng, split, KINDS[wish.kind].rubrics).format(x=wish.shown)


def _draft(rng: np.random.Generator, split: Split, base: Draft, wish: Wish, as_wished: bool) -> Draft | None:
    """A draft that is as wished, or is not, by the wish's program; None if none is found."""
    for _ in range(DRAFTS):
        draft = shaped(rng, split, base, wish, as_wished)
        if wish.met(draft.text) == as_wished:
            return draft
        base = draw_draft(rng, split, base.fact, PLEA)
    return None


def judge_pair(rng: np.random.Generator, split: Split, index: int) -> Sample:
    """Two answers, of which one meets the rubric; half of the pairs differ in other things, too."""
    kind = list(KINDS)[index % len(KINDS)]
    while True:
        fact, (wish, *_), question = _wished(rng, split, kind, 2)
        base = draw_draft(rng, split, fact, PLEA)
        other = draw_draft(rng, split, fact, PLEA) if rng.random() < 0.5 else base
        better, worse = _draft(rng, split, base, wish, True), _draft(rng, split, other, wish, False)
        if better is not None and worse is not None:
            break
    verdict = PAIR[int(rng.integers(2))]
    first, second = (better, worse) if verdict == PAIR[0] else (worse, better)
    asked = pair_prompt(question, first.text, second.text, _rubric(rng, split, wish))
    return _verdict("judge_pair", kind, index, fact, asked, pair_judged(wish, first, second), verdict)


def judge_rubric(rng: np.random.Generator, split: Split, index: int) -> Sample:
    """An answer, and a rubric that it meets or does not."""
    kind = list(KINDS)[index % len(KINDS)]
    verdict = MEETS[int(rng.integers(2))]
    while True:
        fact, (wish, *_), question = _wished(rng, split, kind, 2)
        draft = _draft(rng, split, draw_draft(rng, split, fact, PLEA), wish, verdict == MEETS[0])
        if draft is not None:
            break
    asked = rubric_prompt(question, draft.text, _rubric(rng, split, wish))
    return _verdict("judge_rubric", kind, index, fact, asked, rubric_judged([wish], draft), verdict)


def judge_list(rng: np.random.Generator, split: Split, index: int) -> Sample:
    """An answer, and a rubric that names several things: each gets a verdict, and then all of them one."""
    fact = draw_fact(rng, split)
    kinds = draw_kinds(rng, fact, int(rng.integers(2, LISTED + 1)), "relevant" if rng.random() < TELLING else "")
    wishes = [draw_wish(rng, split, kind, fact) for kind in kinds]
    draft = draw_draft(rng, split, fact, PLEA)
    for wish in wishes:
        draft = shaped(rng, split, draft, wish, bool(rng.integers(2)))
    verdict = MEETS[0] if all(wish.met(draft.text) for wish in wishes) else MEETS[1]
    rubric = " ".join(_rubric(rng, split, wish) for wish in wishes)
    asked = rubric_prompt(_asked(rng, split, fact, wishes), draft.text, rubric)
    return _verdict("judge_list", "-".join(kinds), index, fact, asked, rubric_judged(wishes, draft), verdict)


def _verdict(family: str, kind: str, index: int, fact: Fact, asked: list[Any], judged: str, verdict: str) -> Sample:
    return Sample(
        key=f"{family}-{kind}-{index:08d}", family=family, ability="reasoning", modality="text", source=fact.source,
        messages=[*asked, {"role": "assistant", "content": judged}], answer=verdict, reward="last_line",
    )  # fmt: skip


def open_answer(rng: np.random.Generator, split: Split, index: int) -> Sample:
    """A question for a fact, with wishes; a line of ``rubric`` for each of them."""
    while True:
        fact = draw_fact(rng, split)
        kinds = draw_kinds(rng, fact, WISHES)
        if len(kinds) == WISHES:
            break
    wishes = [draw_wish(rng, split, kind, fact) for kind in kinds]
    draft = Draft(fact)
    for wish in wishes:
        draft = shaped(rng, split, draft, wish, bool(rng.integers(2)))
    answer = {
        TELLS: fact.value,
        NOT: sorted({value for _, value in fact.wrong}),
        WISHED: [{"kind": wish.kind, "checked": wish.checked} for wish in wishes],
    }
    return Sample(
        key=f"{OPEN}-{index:08d}", family=OPEN, ability="knowledge", modality="text", source=fact.source,
        messages=[
            {"role": "user", "content": _asked(rng, split, fact, wishes)},
            {"role": "assistant", "content": draft.text},
        ],
        answer=answer, reward="says", rubric="\n".join(_rubric(rng, split, wish) for wish in wishes),
    )  # fmt: skip


def satisfied(sample: Sample, response: str) -> list[bool]:
    """Which wishes of an open question a response fulfils, by their programs, in the order of the rubrics; none for a
    sample of another family."""
    wishes = sample.answer[WISHED] if sample.family == OPEN else []
    return [Wish(wish["kind"], "", wish["checked"]).met(response) for wish in wishes]


FAMILIES = (
    Family("judge_pair", "reasoning", "text", "task", judge_pair, entity_sources),
    Family("judge_rubric", "reasoning", "text", "task", judge_rubric, entity_sources),
    Family("judge_list", "reasoning", "text", "task", judge_list, entity_sources),
    Family(OPEN, "knowledge", "text", "task", open_answer, entity_sources),
)
