"""Coloured shapes at places: what is where, and within which box (source: ours).

Held out: combinations of colour, shape and place. A picture is made of combinations of its own split only, so an eval
picture cannot occur in training, while every colour, shape and place does.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from model.codec.image import encode_png
from model.data.families.digits import CANVAS, normalised_box
from model.data.families.family import in_split
from model.data.families.visual import Drawn, visual_family
from model.data.samples.sample import Split

COLOURS = {
    "red": (225, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 235),
    "yellow": (240, 220, 50),
    "purple": (160, 60, 200),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
ROWS, COLUMNS = ("top", "", "bottom"), ("left", "", "right")
PLACES = tuple(" ".join(filter(None, (row, column))) or "centre" for row in ROWS for column in COLUMNS)
CELL = CANVAS // 3  # pixels: a place, and one language-model token
SMALLEST, LARGEST = 16, 27  # pixels: a shape's side
EVAL_PERCENT = 15
Combination = tuple[str, str, str]  # colour, shape, place


def source_of(combination: Combination) -> str:
    return "scene/" + " ".join(combination)


@cache
def combinations(split: Split) -> tuple[Combination, ...]:
    """The combinations of one split."""
    every = ((colour, shape, place) for colour in COLOURS for shape in SHAPES for place in PLACES)
    return tuple(c for c in every if in_split(source_of(c), split, EVAL_PERCENT))


def sources(split: Split) -> list[str]:
    return [source_of(combination) for combination in combinations(split)]


def _choose(rng: np.random.Generator, split: Split, count: int) -> list[Combination]:
    """Combinations of different places, and of different colour or shape: each can be asked for."""
    pool, chosen = combinations(split), dict[str, Combination]()
    while len(chosen) < count:
        candidate = pool[rng.integers(len(pool))]
        if all(candidate[:2] != other[:2] for other in chosen.values()):
            chosen.setdefault(candidate[2], candidate)
    return list(chosen.values())


def _mask(shape: str, side: int) -> Image.Image:
    """A shape that fills its square, as an "L" image of ``side`` pixels."""
    mask = Image.new("L", (side, side))
    draw, last = ImageDraw.Draw(mask), side - 1
    if shape == "square":
        draw.rectangle((0, 0, last, last), fill=255)
    elif shape == "triangle":
        draw.polygon(((last / 2, 0), (0, last), (last, last)), fill=255)
    elif shape == "cross":
        arm = side // 3
        draw.rectangle((arm, 0, last - arm, last), fill=255)
        draw.rectangle((0, arm, last, last - arm), fill=255)
    else:
        draw.ellipse((0, 0, last, last), fill=255)
        if shape == "ring":
            rim = side // 4
            draw.ellipse((rim, rim, last - rim, last - rim), fill=0)
    return mask


def draw_scene(
    rng: np.random.Generator, chosen: list[Combination]
) -> tuple[NDArray[np.uint8], list[tuple[int, int, int, int]]]:
    """Shapes somewhere in the cells of their places, on a dark ground.

    Returns:
        uint8 [84, 84, 3], and per shape the box (x0, y0, x1, y1) of its pixels, ends excluded.
    """
    image = Image.new("RGB", (CANVAS, CANVAS), tuple(rng.integers(0, 45, 3).tolist()))
    boxes = []
    for colour, shape, place in chosen:
        row, column = divmod(PLACES.index(place), 3)
        side = int(rng.integers(SMALLEST, LARGEST + 1))
        left, top = (CELL * cell + int(rng.integers(CELL - side + 1)) for cell in (column, row))
        ink = np.clip(np.array(COLOURS[colour]) + rng.integers(-25, 26, 3), 0, 255).tolist()
        mask = _mask(shape, side)
        image.paste(tuple(ink), (left, top), mask)
        x0, y0, x1, y1 = mask.getbbox() or (0, 0, side, side)
        boxes.append((left + x0, top + y0, left + x1, top + y1))
    return np.asarray(image), boxes


def describe(combination: Combination) -> str:
    colour, shape, place = combination
    return f"a {colour} {shape} at the {place}"


def _draw_caption(rng: np.random.Generator, split: Split) -> Drawn:
    chosen = sorted(_choose(rng, split, int(rng.integers(1, 3))), key=lambda c: PLACES.index(c[2]))
    pixels_HWC, _ = draw_scene(rng, chosen)
    text = " and ".join(describe(combination) for combination in chosen)
    question = ("Describe the picture.", "What is where?")[rng.integers(2)]
    return Drawn(encode_png(pixels_HWC), question, text, text, source_of(chosen[0]))


def _draw_box(rng: np.random.Generator, split: Split) -> Drawn:
    chosen = _choose(rng, split, int(rng.integers(1, 4)))
    pixels_HWC, boxes = draw_scene(rng, chosen)
    colour, shape, _ = chosen[0]
    found = [normalised_box(box, CANVAS, CANVAS) for box in boxes]
    question = (f"Where is the {colour} {shape}?", f"Find the {colour} {shape}.")[rng.integers(2)]
    # A caption tells all boxes, in reading order: several to learn from for the price of one picture.
    order = sorted(range(len(chosen)), key=lambda i: PLACES.index(chosen[i][2]))
    caption = "; ".join(f"{chosen[i][0]} {chosen[i][1]} {found[i]}" for i in order)
    return Drawn(encode_png(pixels_HWC), question, found[0], caption, source_of(chosen[0]))


SCENE_CAPTION = visual_family("scene_caption", "knowledge", "image", "exact", _draw_caption, sources)
SCENE_BOX = visual_family("scene_box", "reasoning", "image", "box", _draw_box, sources)
FAMILIES = (SCENE_CAPTION, SCENE_BOX)
