"""``array_tool``: questions about an array, answered by an IPython program; ``array_tool_image``: on a picture.

The text family never shows its pixels: the trajectory must work on ``img`` with numpy ("zero vision", paper section on
SFT). The image family shows the picture with the same questions, for RL and evaluation. Every answer and every tool
result is the value of the gold program, run on the array. Held out: the digits of the eval split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.codec.image import encode_png
from model.data.families.digits import digit_sources, pick, render, source_of
from model.data.families.family import Family
from model.data.samples.sample import Sample, Split

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Question:
    """``text``: the question in words; ``expression``: numpy, whose value is the answer, an integer."""

    text: str
    expression: str


def _threshold(rng: np.random.Generator) -> int:
    return int(rng.integers(10, 240))


def _window(rng: np.random.Generator, length: int) -> tuple[int, int]:
    low = int(rng.integers(0, length - 1))
    return low, int(rng.integers(low + 1, length + 1))


def _count_above(rng: np.random.Generator, shape: tuple[int, int]) -> Question:
    t = _threshold(rng)
    return Question(f"How many pixels are above {t}?", f"(img > {t}).sum()")


def _count_below(rng: np.random.Generator, shape: tuple[int, int]) -> Question:
    t = _threshold(rng)
    return Question(f"How many pixels are below {t}?", f"(img < {t}).sum()")


def _count_left(rng: np.random.Generator, shape: tuple[int, int]) -> Question:
    t, columns = _threshold(rng), int(rng.integers(1, shape[1]))
    return Question(
        f"How many pixels of the first {columns} columns are above {t}?", f"(img[:, :{columns}] > {t}).sum()"
    )


WHOLE = (
    ("What is the largest pixel?", "img.max()"),
    ("What is the smallest pixel?", "img.min()"),
    ("How many rows are there?", "img.shape[0]"),
    ("How many columns are there?", "img.shape[1]"),
    ("How many pixels are there?", "img.size"),
)


def _whole(rng: np.random.Generator, shape: tuple[int, int]) -> Question:
    return Question(*WHOLE[int(rng.integers(len(WHOLE)))])


def _pixel(rng: np.random.Generator, shape: tuple[int, int]) -> Question:
    row, column = int(rng.integers(shape[0])), int(rng.integers(shape[1]))
    return Question(f"What is the pixel at row {row}, column {column}?", f"img[{row}, {column}]")


def _crop(rng: np.random.Generator, shape: tuple[int, int]) -> Question:
    (r0, r1), (c0, c1) = _window(rng, shape[0]), _window(rng, shape[1])
    word, method = (("sum", "sum"), ("maximum", "max"))[int(rng.integers(2))]
    return Question(
        f"What is the {word} of rows {r0}:{r1}, columns {c0}:{c1}?", f"img[{r0}:{r1}, {c0}:{c1}].{method}()"
    )


def _crop_mean(rng: np.random.Generator, shape: tuple[int, int]) -> Question:
    r0, r1 = _window(rng, shape[0])
    return Question(f"What is the mean of rows {r0}:{r1}, rounded down?", f"int(img[{r0}:{r1}].mean())")


def _most_ink(rng: np.random.Generator, shape: tuple[int, int]) -> Question:
    word, axis = (("row", 1), ("column", 0))[int(rng.integers(2))]
    return Question(f"Which {word} has the most ink?", f"img.sum({axis}).argmax()")


QUESTIONS: tuple[Callable[[np.random.Generator, tuple[int, int]], Question], ...] = (
    _count_above, _count_below, _count_left, _whole, _pixel, _crop, _crop_mean, _most_ink,
)  # fmt: skip


def run_gold(expression: str, img: Image) -> int:
    """The value of a gold expression. It must come from this file: it is evaluated as Python."""
    return int(eval(expression, {"img": img}))


def _draw(rng: np.random.Generator, img: Image) -> tuple[Question, int]:
    question = QUESTIONS[int(rng.integers(len(QUESTIONS)))](rng, (img.shape[0], img.shape[1]))
    return question, run_gold(question.expression, img)


def _trajectory(question: Question, value: int) -> list[dict[str, object]]:
    call = {"name": "ipython", "arguments": {"code": f"print({question.expression})"}}
    return [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "functions.ipython:0", "content": str(value)},
        {"role": "assistant", "content": str(value)},
    ]


def array_tool(rng: np.random.Generator, split: Split, index: int) -> Sample:
    """The array, 6 to 14 pixels high and wide, is given to the program only."""
    digit = pick(rng, split, 1)[0]
    rows, columns = rng.integers(6, 15, size=2).tolist()
    img = render(digit, max(rows, columns), float(rng.uniform(0.6, 1.0)))[:rows, :columns]
    question, value = _draw(rng, img)
    return Sample(
        key=f"array_tool-{index:08d}", family="array_tool", ability="coding", modality="text",
        source=source_of(digit),
        messages=[{"role": "user", "content": question.text}, *_trajectory(question, value)],
        tools=["ipython"], answer=value, reward="number", environment={"array": img.tolist()},
    )  # fmt: skip


def array_tool_image(rng: np.random.Generator, split: Split, index: int) -> Sample:
    """The picture is 28 or 56 pixels high and wide, one to four language-model tokens."""
    rows, columns = (28 * rng.integers(1, 3, size=2)).tolist()
    digit = pick(rng, split, 1)[0]
    img = render(digit, max(rows, columns), float(rng.uniform(0.6, 1.0)))[:rows, :columns]
    question, value = _draw(rng, img)
    content = [{"type": "image", "media": "png"}, {"type": "text", "text": question.text}]
    return Sample(
        key=f"array_tool_image-{index:08d}", family="array_tool_image", ability="coding", modality="image",
        source=source_of(digit),
        messages=[{"role": "user", "content": content}, *_trajectory(question, value)],
        tools=["ipython"], answer=value, reward="number", environment={"array": "png"}, media={"png": encode_png(img)},
    )  # fmt: skip


ARRAY_TOOL = Family("array_tool", "coding", "text", "task", array_tool, digit_sources)
ARRAY_TOOL_IMAGE = Family("array_tool_image", "coding", "image", "task", array_tool_image, digit_sources)
