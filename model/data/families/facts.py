"""World facts: ``fact_prose`` states them, ``fact_qa`` asks for one that the context holds.

Held out: countries, elements, and cities by their country, so an eval answer can only be read from the context.

Names and values never follow a space: byte-level BPE gives "Lima" and " Lima" different tokens, and a tiny model that
must answer "Lima" can only copy it if the context has the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.data.families.entities import Entity, draw, draw_kind, entities, entity_sources
from model.data.families.family import Family
from model.data.samples.sample import Sample, Split

COMPARISON_SHARE = 0.1  # ours
# Of the questions for a value, those that ask for a number: digits are what a tiny model learns to copy first (ours).
NUMBER_SHARE = 0.3
FIELDS = {
    "capital": "capital", "continent": "continent", "currency": "currency", "population": "population",
    "code": "code", "country": "country", "symbol": "symbol", "number": "number", "period": "period",
    "block": "block", "year": "year", "group": "group", "mass": "mass", "phone": "phone code", "area": "area",
}  # fmt: skip
SENTENCES = ('The {field} of "{name}" is "{value}".', '"{name}" has the {field} "{value}".')
QUESTIONS = ('What is the {field} of "{name}"?', 'Tell the {field} of "{name}".', '"{name}": which {field}?')
COMPARISONS = {
    "population": (('Which has more people, "{a}" or "{b}"?', max), ('Which has fewer people, "{a}" or "{b}"?', min)),
    "number": (('Which is heavier, "{a}" or "{b}"?', max), ('Which is lighter, "{a}" or "{b}"?', min)),
}


def _pick(rng: np.random.Generator, options: Sequence[str], count: int) -> list[str]:
    order = rng.permutation(len(options))[:count]
    return [options[i] for i in sorted(order)]


def record_line(entity: Entity, attributes: Sequence[str]) -> str:
    """``Peru: capital=Lima; currency=Sol``."""
    return f"{entity.name}: " + "; ".join(f"{FIELDS[key]}={entity.attributes[key]}" for key in attributes)


def fact_prose(rng: np.random.Generator, split: Split, index: int) -> Sample:
    """Records, then the same facts as sentences; the sentences can be read off the records."""
    kind = draw_kind(rng)
    chosen = draw(rng, entities(kind, split), int(rng.integers(1, 4)))
    shown = [_pick(rng, list(entity.attributes), int(rng.integers(2, 4))) for entity in chosen]
    lines = [record_line(entity, keys) for entity, keys in zip(chosen, shown, strict=True)]
    sentence = SENTENCES[int(rng.integers(len(SENTENCES)))]
    facts = [
        sentence.format(field=FIELDS[key], name=entity.name, value=entity.attributes[key])
        for entity, keys in zip(chosen, shown, strict=True)
        for key in keys
    ]
    text = "\n".join([*lines, " ".join(facts[i] for i in rng.permutation(len(facts)))])
    return Sample(
        key=f"fact_prose-{index:08d}", family="fact_prose", ability="knowledge", modality="text",
        source=chosen[0].source, segments=[{"type": "text", "text": text, "loss": True}],
    )  # fmt: skip


def fact_qa(rng: np.random.Generator, split: Split, index: int) -> Sample:
    """One to three records and a question; the answer is one value, or one of two names, of the context."""
    kind = draw_kind(rng)
    measure = "number" if kind == "element" else "population"
    chosen = draw(rng, entities(kind, split), (1, 1, 1, 2, 2, 3)[int(rng.integers(6))])
    comparable = [entity for entity in chosen if measure in entity.attributes]
    compare = len(comparable) >= 2 and rng.random() < COMPARISON_SHARE * 2  # half have one record only
    if compare:
        a, b = comparable[:2]
        question, better = COMPARISONS[measure][int(rng.integers(2))]
        question = question.format(a=a.name, b=b.name)
        answer = better((a, b), key=lambda entity: int(entity.attributes[measure])).name
        asked = measure
    else:
        subject = chosen[0]
        numbers = [key for key, value in subject.attributes.items() if value.isdigit()]
        asked = str(rng.choice(numbers if numbers and rng.random() < NUMBER_SHARE else list(subject.attributes)))
        question = QUESTIONS[int(rng.integers(len(QUESTIONS)))].format(field=FIELDS[asked], name=subject.name)
        answer = subject.attributes[asked]
    lines = []
    for entity in (chosen[i] for i in rng.permutation(len(chosen))):
        keys = set(_pick(rng, list(entity.attributes), int(rng.integers(1, 3)))) | {asked}
        lines.append(record_line(entity, [key for key in entity.attributes if key in keys]))
    return Sample(
        key=f"fact_qa-{index:08d}", family="fact_qa", ability="knowledge", modality="text", source=chosen[0].source,
        messages=[
            {"role": "user", "content": "\n".join([*lines, question])},
            {"role": "assistant", "content": answer},
        ],
        answer=answer, reward="exact",
    )  # fmt: skip


FACT_PROSE = Family("fact_prose", "knowledge", "text", "document", fact_prose, entity_sources)
FACT_QA = Family("fact_qa", "knowledge", "text", "task", fact_qa, entity_sources)
