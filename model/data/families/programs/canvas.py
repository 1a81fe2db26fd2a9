"""Drawing of scenes: grey levels, places that do not touch, shapes of known area (source: ours).

Held out: pairs of the levels of ground and ink. A picture has the levels of one pair, so no eval picture is a training
picture. Shapes are connected by their edges, have no holes, and never touch each other, not even at a corner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from model.data.families.family import in_split
from model.data.families.programs.kind import Image
from model.data.samples.sample import Split

GROUNDS, INKS = range(0, 64, 4), range(164, 256, 4)  # levels
NOISE = 8  # levels that noise adds at most
CLEAR = 30  # levels between a threshold and the ground or the ink
EVAL_PERCENT = 15
LEAST_CELL = 9  # pixels: a place for one shape
SHAPES = ("square", "triangle", "disc", "corner", "plus")
COLOURS = ("red", "green", "blue")  # by channel


@dataclass(frozen=True)
class Palette:
    """Levels of the ground and of what is drawn on it, 0-255."""

    ground: int
    ink: int

    @property
    def source(self) -> str:
        return f"levels/{self.ground}-{self.ink}"


@dataclass(frozen=True)
class Box:
    """Rows ``row`` to ``row + height`` and columns ``column`` to ``column + width``, ends excluded."""

    row: int
    column: int
    height: int
    width: int

    @property
    def area(self) -> int:
        return self.height * self.width

    def shared(self, other: Box) -> int:
        """Pixels that lie in both."""
        rows = min(self.row + self.height, other.row + other.height) - max(self.row, other.row)
        columns = min(self.column + self.width, other.column + other.width) - max(self.column, other.column)
        return max(0, rows) * max(0, columns)


@cache
def palettes(split: Split) -> tuple[Palette, ...]:
    every = (Palette(ground, ink) for ground in GROUNDS for ink in INKS)
    return tuple(palette for palette in every if in_split(palette.source, split, EVAL_PERCENT))


def palette_sources(split: Split) -> list[str]:
    return [palette.source for palette in palettes(split)]


def pick_palette(rng: np.random.Generator, split: Split) -> Palette:
    return palettes(split)[int(rng.integers(len(palettes(split))))]


def threshold(rng: np.random.Generator, palette: Palette) -> int:
    """A level that separates ink from ground, also with noise."""
    return int(rng.integers(palette.ground + CLEAR, palette.ink - CLEAR))


def blank(palette: Palette, height: int, width: int) -> Image:
    return np.full((height, width), palette.ground, np.uint8)


def fill(img: Image, box: Box, level: int) -> None:
    """Draw a rectangle, in place."""
    img[box.row : box.row + box.height, box.column : box.column + box.width] = level


def with_noise(rng: np.random.Generator, img: Image) -> Image:
    """The picture, each pixel up to ``NOISE`` levels brighter."""
    return np.minimum(img, 255 - NOISE) + rng.integers(0, NOISE + 1, img.shape, dtype=np.uint8)


def _cells(rng: np.random.Generator, height: int, width: int, count: int) -> tuple[list[tuple[int, int]], int, int]:
    """Corners (row, column) of ``count`` different cells of a grid over the picture, and the cells' size."""
    rows, columns = (int(rng.integers(3, max(3, min(5, side // LEAST_CELL)) + 1)) for side in (height, width))
    tall, wide = height // rows, width // columns
    chosen = rng.permutation(rows * columns)[:count].tolist()
    return [(tall * (cell // columns), wide * (cell % columns)) for cell in chosen], tall, wide


def boxes(rng: np.random.Generator, height: int, width: int, count: int) -> list[Box]:
    """Up to 9 rectangles with sides of 3 pixels and more, a free row and a free column after each."""
    corners, tall, wide = _cells(rng, height, width, count)
    found = []
    for row, column in corners:
        h, w = int(rng.integers(3, tall)), int(rng.integers(3, wide))
        found.append(Box(row + int(rng.integers(tall - h)), column + int(rng.integers(wide - w)), h, w))
    return found


def squares(rng: np.random.Generator, height: int, width: int, count: int) -> list[Box]:
    """As `boxes`, with as many rows as columns, an odd number: there is room for every shape."""
    corners, tall, wide = _cells(rng, height, width, count)
    found = []
    for row, column in corners:
        side = 1 + 2 * int(rng.integers(1, min(tall, wide) // 2))
        found.append(Box(row + int(rng.integers(tall - side)), column + int(rng.integers(wide - side)), side, side))
    return found


@cache
def shape_mask(shape: str, side: int) -> np.ndarray:
    """bool [side, side], for an odd side."""
    rows, columns = np.mgrid[:side, :side]
    middle = side // 2
    if shape == "square":
        return np.ones((side, side), bool)
    if shape == "triangle":
        return columns <= rows
    if shape == "disc":
        return (rows - middle) ** 2 + (columns - middle) ** 2 <= middle**2
    if shape == "corner":
        return (columns == 0) | (rows == side - 1)
    return (columns == middle) | (rows == middle)


def shape_area(shape: str, side: int) -> int:
    """Pixels of `shape_mask`, by arithmetic."""
    radius = side // 2
    return {
        "square": side * side,
        "triangle": side * (side + 1) // 2,
        "disc": sum(2 * math.isqrt(radius**2 - step**2) + 1 for step in range(-radius, radius + 1)),
        "corner": 2 * side - 1,
        "plus": 2 * side - 1,
    }[shape]


def pick_shape(rng: np.random.Generator) -> str:
    return SHAPES[int(rng.integers(len(SHAPES)))]


def fill_shape(img: Image, shape: str, box: Box, level: int) -> None:
    """Draw a shape into a square box of one channel, in place."""
    part = img[box.row : box.row + box.height, box.column : box.column + box.width]
    part[shape_mask(shape, box.height)] = level
