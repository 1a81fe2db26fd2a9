"""``interleaved``: a picture and an unrelated text in one context (source: ours).

On the web, too, pictures stand between texts. If every context with a picture is a short answer about it, a tiny model
loses its skills with text after a picture: it begins a program, or copies a name, and does not continue. Here a caption
is followed by a document, a question about a picture by one about a text, or a question about a text has a picture
above it. In one case of four the text comes first.

Both parts are samples of other families, with their losses and their held-out sources.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from model.data.families import digits, photo
from model.data.families.facts import FACT_PROSE, FACT_QA
from model.data.families.family import Family
from model.data.families.reasoning import REASONING_GYM
from model.data.families.recall import RECALL
from model.data.families.stdlib import STDLIB_CODE
from model.data.families.wide_search import SUB_SEARCH
from model.data.samples.sample import Sample, Split

PICTURES = (digits.DIGIT_STRING, digits.DIGIT_COUNT, photo.PHOTO)
DOCUMENTS = (RECALL, STDLIB_CODE, FACT_PROSE)
# Copying from the context and a call of a tool twice as often (ours). Without calls, a model that calls a tool in a
# conversation of text answers at once where a picture is shown.
QUESTIONS = (FACT_QA, FACT_QA, REASONING_GYM, SUB_SEARCH, SUB_SEARCH)
BREAK = {"type": "text", "text": "\n", "loss": False}


def interleaved(rng: np.random.Generator, split: Split, index: int) -> Sample:
    """One context of two parts; three in four begin with the picture."""
    picture = PICTURES[int(rng.integers(len(PICTURES)))].generate(rng, split, index)
    texts = QUESTIONS if picture.messages else DOCUMENTS
    text = texts[int(rng.integers(len(texts)))].generate(rng, split, index)
    segments, messages = [], []
    system = text.messages[:1] if text.messages and text.messages[0]["role"] == "system" else []  # stays the first turn
    turns = text.messages[len(system) :]
    order = int(rng.integers(4))
    if picture.segments:
        first, second = (text, picture) if order == 0 else (picture, text)
        segments = [*first.segments, BREAK, *second.segments]
    elif order == 0:
        messages = [*system, *turns, *picture.messages]
    elif order == 1:
        messages = [*system, *picture.messages, *turns]
    else:  # the picture stands above a question that is not about it
        asked, *answered = turns
        shown = [picture.messages[0]["content"][0], {"type": "text", "text": asked["content"]}]
        messages = [*system, asked | {"content": shown}, *answered]
    return replace(
        picture,
        key=f"interleaved-{split}-{index:06d}", family="interleaved", ability="knowledge", modality="image",
        segments=segments, messages=messages, tools=text.tools if messages else [], answer=None, reward="",
    )  # fmt: skip


def _sources(split: Split) -> list[str]:
    return sorted({source for family in PICTURES for source in family.sources(split)})


INTERLEAVED = Family("interleaved", "knowledge", "image", "document", interleaved, _sources)
