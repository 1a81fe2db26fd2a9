"""``dialogue``: a user and an assistant with tools, over several turns (source: ours).

The assistant searches, computes, asks back when a name, an attribute or the rows are missing, takes corrections, and
says when nothing is found. The user's turns are in the sample: an episode gives each of them after an answer, whatever
the answer was (``model.rl.environment``). The last reply is verified, and it depends on the turns before it.

There are ten kinds (``kinds.KINDS``), in turn by the index of the sample, about countries, cities and elements. A key
names the kind: ``dialogue-which_rows-00000009``. Held out: the entities, and the last wording of every turn of the
user, which only eval samples have, each in half of them.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from model.data.families.dialogue.kinds import KINDS
from model.data.families.dialogue.talk import Talk
from model.data.families.entities import Entity, Kind, draw, entities
from model.data.families.family import Family
from model.data.samples.sample import Sample, Split

ATTRIBUTES: dict[Kind, tuple[str, ...]] = {
    "country": ("capital", "continent", "currency", "phone", "area"),
    "city": ("country", "continent", "population"),
    "element": ("symbol", "number", "period", "group", "year"),
}
NUMBERS: dict[Kind, tuple[str, ...]] = {
    "country": ("area",),
    "city": ("population",),
    "element": ("number", "mass", "year"),
}
NUMBER_NAMES = tuple(dict.fromkeys(key for keys in NUMBERS.values() for key in keys))


@cache
def _pool(kind: Kind, split: Split, number: str = "") -> list[Entity]:
    """Entities with at least two attributes to ask for, or with this number."""
    least = (number,) if number else ATTRIBUTES[kind]
    return [
        entity for entity in entities(kind, split) if len(set(least) & set(entity.attributes)) >= (1 if number else 2)
    ]


def dialogue(rng: np.random.Generator, split: Split, index: int) -> Sample:
    """A dialogue of two to four turns of the user and their replies, with calls in between."""
    name = list(KINDS)[index % len(KINDS)]
    hold, count, numeric = KINDS[name]
    kind = list(ATTRIBUTES)[int(rng.integers(len(ATTRIBUTES)))]
    keys = (str(rng.choice(NUMBERS[kind])),) if numeric else ATTRIBUTES[kind]
    about = draw(rng, _pool(kind, split, keys[0] if numeric else ""), count)
    talk = Talk(rng, split, about)
    hold(talk, keys)
    answer = str(talk.messages[-1]["content"])
    return Sample(
        key=f"dialogue-{name}-{index:08d}", family="dialogue", ability="agentic", modality="text",
        source=about[0].source, messages=talk.messages, tools=["search", "ipython"], answer=answer, reward="exact",
        environment={"records": talk.records},
    )  # fmt: skip


def dialogue_sources(split: Split) -> list[str]:
    """Entities that a dialogue is about."""
    pools = [_pool(kind, split, number) for kind in ATTRIBUTES for number in ("", *NUMBERS[kind])]
    return list(dict.fromkeys(entity.source for pool in pools for entity in pool))


DIALOGUE = Family("dialogue", "agentic", "text", "task", dialogue, dialogue_sources)
