"""``thinking``: problems whose answer follows visible thinking, in a short or a long style (source: ours).

The system turn asks for the style. Both styles are ways to write the same solution: the short one states its key steps,
the long one takes every step. Thinking ends with the answer, which is then given alone, and is what is verified.

There are 12 kinds (``KINDS``), in turn by the index of the sample; each round of them is in one style. A key names
both: ``thinking-multiply-long-00000012``. Held out: the operands (numbers, words or names that a problem is about), and
the last wording of every question and of every request for a style, which only eval samples have, each in half of them.
"""

from __future__ import annotations

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


def thinking(rng: np.random.Generator, split: Split, index: int) -> Sample:
    """A problem, thinking in the style that is asked for, and the answer."""
    kind, style = KINDS[index % len(KINDS)], STYLES[index // len(KINDS) % len(STYLES)]
    problem, source = _draw(rng, kind, split)
    return Sample(
        key=f"thinking-{kind.name}-{style}-{index:08d}", family="thinking", ability="reasoning", modality="text",
        source=source,
        messages=[
            {"role": "system", "content": choose(rng, split, REQUESTS[style])},
            {"role": "user", "content": choose(rng, split, kind.wordings).format(**problem.fields)},
            {"role": "assistant", "reasoning": problem.thinking(style), "content": problem.answer},
        ],
        answer=problem.answer, reward="exact", environment={"style": style},
    )  # fmt: skip


def thinking_sources(split: Split) -> list[str]:
    return operand_sources((kind.name for kind in KINDS), split)


THINKING = Family("thinking", "reasoning", "text", "task", thinking, thinking_sources)
