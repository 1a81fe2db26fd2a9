"""Handwritten digits to read, count and find (data: scikit-learn's digits, 1,797 of 8x8 pixels; source: ours).

A fifth of the digits is held out, by sample as everywhere here; the data does not say who wrote a digit.
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.codec.image import encode_png
from model.data.families.family import in_split
from model.data.families.visual import Drawn, package_folder, visual_family
from model.data.samples.sample import Split

EVAL_PERCENT = 20
CANVAS = 84  # pixels: 3 x 3 language-model tokens
GAP = 2  # pixels left free between two digits of one canvas
INK = 96  # of 255: what counts as the digit's own pixels in a box; its soft upscaled rim does not


@cache
def digit_table() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All digits: uint8 [1797, 8, 8] with ink up to 255, and their labels [1797]."""
    rows = np.loadtxt(package_folder("sklearn") / "datasets/data/digits.csv.gz", delimiter=",", dtype=np.int64)
    return (rows[:, :-1].reshape(-1, 8, 8) * 255 // 16).astype(np.uint8), rows[:, -1]


@cache
def digit_ids(split: Split) -> list[int]:
    """Indices into `digit_table` of one split."""
    return [i for i in range(len(digit_table()[1])) if in_split(source_of(i), split, EVAL_PERCENT)]


def digit_sources(split: Split) -> list[str]:
    return [source_of(i) for i in digit_ids(split)]


def source_of(digit_id: int) -> str:
    return f"sklearn.digits/{digit_id}"


def pick(rng: np.random.Generator, split: Split, count: int) -> list[int]:
    """Indices of ``count`` random digits of a split; one may occur twice."""
    ids = digit_ids(split)
    return [ids[i] for i in rng.integers(len(ids), size=count)]


def label(digit_id: int) -> str:
    return str(digit_table()[1][digit_id])


def render(digit_id: int, size: int, contrast: float) -> NDArray[np.uint8]:
    """One digit as uint8 [size, size], white ink on black."""
    ink = Image.fromarray(digit_table()[0][digit_id]).resize((size, size), Image.Resampling.BILINEAR)
    return (np.asarray(ink, dtype=np.float32) * contrast).astype(np.uint8)


def write(rng: np.random.Generator, split: Split, digit_id: int, size: int, contrast: float) -> NDArray[np.uint8]:
    """`render`; a training digit is also turned, slanted and stretched a little, as another hand might write it.

    A model soon memorises the 1,400 training digits: without this it reads all of them, but fewer of the held-out ones.
    """
    ink = render(digit_id, size, contrast)
    if split == "eval":
        return ink
    turn, slant, *stretch = rng.uniform(-1, 1, 4) * (0.26, 0.25, 0.15, 0.15)  # radians, pixels per pixel, logs
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = turned @ np.array([[1.0, slant], [0.0, 1.0]]) @ np.diag(np.exp(stretch))
    centre = np.full(2, (size - 1) / 2)
    (a, b), (d, e) = matrix
    c, f = centre - matrix @ centre
    warped = Image.fromarray(ink).transform(
        (size, size), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR
    )
    return np.asarray(warped)


def paste(canvas_HW: NDArray[np.uint8], ink_HW: NDArray[np.uint8], top: int, left: int) -> None:
    """Draws a digit on the canvas, in place, clipped at the borders."""
    height, width = canvas_HW.shape
    y0, x0, y1, x1 = max(0, top), max(0, left), min(height, top + len(ink_HW)), min(width, left + len(ink_HW))
    part = canvas_HW[y0:y1, x0:x1]
    np.maximum(part, ink_HW[y0 - top : y1 - top, x0 - left : x1 - left], out=part)


def add_noise(rng: np.random.Generator, canvas_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Faint sensor noise, up to 11 of 255."""
    noise = rng.integers(0, 12, canvas_HW.shape, dtype=np.uint8)
    return np.minimum(canvas_HW, 255 - noise) + noise


def _draw_string(rng: np.random.Generator, split: Split) -> Drawn:
    ids = pick(rng, split, 3)
    canvas = np.zeros((28, CANVAS), np.uint8)
    for place, digit_id in enumerate(ids):
        size = int(rng.integers(22, 29))
        centred = (28 - size) // 2
        top, left = centred + int(rng.integers(-2, 3)), centred + int(rng.integers(-2, 3))
        paste(canvas, write(rng, split, digit_id, size, rng.uniform(0.7, 1.0)), top, 28 * place + left)
    text = "".join(label(i) for i in ids)
    question = ("Read the digits.", "Which digits?")[rng.integers(2)]
    return Drawn(encode_png(add_noise(rng, canvas)), question, text, f"three digits: {text}", source_of(ids[0]))


def scatter(
    rng: np.random.Generator, split: Split, ids: list[int], smallest: int = 20, largest: int = 24
) -> tuple[NDArray[np.uint8], list[tuple[int, int, int, int]]]:
    """Digits at random places that do not overlap.

    Args:
        rng: the only source of chance.
        split: training digits are varied, see `write`.
        ids: which digits; up to 6 find room, 9 if none is wider than 16 pixels.
        smallest, largest: bounds of a digit's side in pixels.

    Returns:
        The noise-free canvas uint8 [84, 84], and per digit the box (x0, y0, x1, y1) of its ink: pixels, ends excluded.
    """
    sizes = rng.integers(smallest, largest + 1, len(ids)).tolist()
    places: list[tuple[int, int, int]] = []
    while len(places) < len(ids):
        # Early digits can leave no room for the last one: after 30 misses all are placed again.
        places = []
        for size in sizes:
            for left, top in rng.integers(0, CANVAS - size + 1, (30, 2)).tolist():
                if all(
                    abs(left - x) >= (size if left < x else s) + GAP or abs(top - y) >= (size if top < y else s) + GAP
                    for x, y, s in places
                ):
                    places.append((left, top, size))
                    break
            else:
                break
    canvas = np.zeros((CANVAS, CANVAS), np.uint8)
    boxes = []
    for digit_id, (left, top, size) in zip(ids, places, strict=True):
        ink = write(rng, split, digit_id, size, rng.uniform(0.7, 1.0))
        paste(canvas, ink, top, left)
        rows, columns = np.flatnonzero((ink >= INK).any(1)), np.flatnonzero((ink >= INK).any(0))
        x0, y0 = left + int(columns[0]), top + int(rows[0])
        boxes.append((x0, y0, left + int(columns[-1]) + 1, top + int(rows[-1]) + 1))
    return canvas, boxes


def _draw_count(rng: np.random.Generator, split: Split, most: int, smallest: int, largest: int) -> Drawn:
    ids = pick(rng, split, int(rng.integers(1, most + 1)))
    canvas, _ = scatter(rng, split, ids, smallest, largest)
    question = ("How many digits?", "Count the digits.")[rng.integers(2)]
    caption = f"digits shown: {len(ids)}"
    return Drawn(encode_png(add_noise(rng, canvas)), question, str(len(ids)), caption, source_of(ids[0]))


def normalised_box(box: tuple[int, int, int, int], width: int, height: int) -> str:
    """Pixels (ends excluded) -> ``x0 y0 x1 y1`` in hundredths of the picture, 0-99."""
    scaled = (round(100 * value / side) for value, side in zip(box, (width, height) * 2, strict=True))
    return " ".join(str(min(99, value)) for value in scaled)


def _draw_grounding(rng: np.random.Generator, split: Split) -> Drawn:
    labels = digit_table()[1]
    wanted = int(rng.integers(2, 5))
    ids: list[int] = []
    while len(ids) < wanted:
        candidate = pick(rng, split, 1)[0]
        if labels[candidate] not in labels[ids]:
            ids.append(candidate)
    canvas, boxes = scatter(rng, split, ids, 22, 30)
    box = normalised_box(boxes[0], CANVAS, CANVAS)
    question = (f"Where is the {label(ids[0])}?", f"Find the {label(ids[0])}.")[rng.integers(2)]
    caption = f"the {label(ids[0])} is at {box}"
    return Drawn(encode_png(add_noise(rng, canvas)), question, box, caption, source_of(ids[0]))


DIGIT_STRING = visual_family("digit_string", "knowledge", "image", "exact", _draw_string, digit_sources)
DIGIT_COUNT = visual_family(
    "digit_count", "reasoning", "image", "number", partial(_draw_count, most=6, smallest=20, largest=24), digit_sources
)
# Nine digits find room only where they are smaller.
DIGIT_TALLY = visual_family(
    "digit_tally", "reasoning", "image", "number", partial(_draw_count, most=9, smallest=13, largest=16), digit_sources
)
GROUNDING = visual_family("grounding", "reasoning", "image", "box", _draw_grounding, digit_sources)
FAMILIES = (DIGIT_STRING, DIGIT_COUNT, DIGIT_TALLY, GROUNDING)
