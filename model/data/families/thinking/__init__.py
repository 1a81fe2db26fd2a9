"""``thinking``: problems whose answer follows visible thinking, in a short or a long style (source: ours).

The system turn asks for the style. Both styles are ways to write the same solution: the short one states its key steps,
the long one takes every step. Thinking ends with the answer, which is then given alone, and is what is verified.

There are 12 kinds (``KINDS``), in turn by the index of the sample; each round of them is in one style. A key names
both: ``thinking-multiply-long-00000012``. Held out: the operands (numbers, words or names that a problem is about), and
the last wording of every question and of every request for a style, which only eval samples have, each in half of them.

``free_arithmetic`` and ``free_reading`` ask the same problems, with numbers and with words, and for no style: the
reference answers have both in turn, so that a policy that learned from them is free in how long it thinks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from model.data.families.family import Family, choose, operand_source, operand_sources
from model.data.families.thinking import arithmetic, reading
from model.data.families.thinking.problem import Kind, Problem, Style
from model.data.samples.sample import Sample, Split

KINDS: tuple[Kind, ...] = (*arithmetic.KINDS, *reading.KINDS)
REQUESTS: dict[Style, tuple[str, ...]] = {
    "short": ("Think briefly.", "Think in few words.", "Keep the thinking short.", "A short thought, then answer."),
    "long": ("Think step by step.", "Think in full.", "Show every step.", "Take all steps, then answer."),
}
STYLES: tuple[Style, ...] = tuple(REQUESTS)


def _draw(rng: np.random.Generator, kind: Kind, split: Split) -> tuple[Problem, str]:
    """A problem of the split, and its source."""
    while True:
        problem = kind.draw(rng, split)
        if (source := operand_source(kind.name, problem.operands, split)) is not None:
            return problem, source


def _sample(name: str, kinds: Sequence[Kind], asks: bool, rng: np.random.Generator, split: Split, index: int) -> Sample:
    """A problem, thinking in the style of this index, and the answer; ``asks``: the system turn asks for the style."""
    kind, style = kinds[index % len(kinds)], STYLES[index // len(kinds) % len(STYLES)]
    problem, source = _draw(rng, kind, split)
    request = [{"role": "system", "content": choose(rng, split, REQUESTS[style])}] if asks else []
    return Sample(
        key=f"{name}-{kind.name}-{style}-{index:08d}", family=name, ability="reasoning", modality="text",
        source=source,
        messages=[
            *request,
            {"role": "user", "content": choose(rng, split, kind.wordings).format(**problem.fields)},
            {"role": "assistant", "reasoning": problem.thinking(style), "content": problem.answer},
        ],
        answer=problem.answer, reward="exact", environment={"style": style},
    )  # fmt: skip


def _sources(kinds: Sequence[Kind], split: Split) -> list[str]:
    return operand_sources((kind.name for kind in kinds), split)


def _family(name: str, kinds: Sequence[Kind], asks: bool) -> Family:
    return Family(name, "reasoning", "text", "task", partial(_sample, name, kinds, asks), partial(_sources, kinds))


THINKING = _family("thinking", KINDS, asks=True)
FREE = (_family("free_arithmetic", arithmetic.KINDS, asks=False), _family("free_reading", reading.KINDS, asks=False))
FAMILIES = (THINKING, *FREE)
