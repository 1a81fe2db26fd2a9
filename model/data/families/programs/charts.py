"""Kinds that read a chart: the value of a bar, the value of a point beside an axis."""

from __future__ import annotations

import numpy as np

from model.data.families.programs.canvas import Box, blank, fill, pick_palette, threshold
from model.data.families.programs.kind import Kind, Scene, Style
from model.data.samples.sample import Split


def _draw_bars(rng: np.random.Generator, split: Split, height: int, width: int) -> Scene:
    palette = pick_palette(rng, split)
    count, unit = int(rng.integers(3, 7)), int(rng.integers(2, 5))
    place = (width - 1) // count
    values = rng.integers(1, (height - 1) // unit + 1, count).tolist()
    thickness = int(rng.integers(2, place))
    img = blank(palette, height, width)
    for number, value in enumerate(values):
        tall = value * unit
        fill(img, Box(height - tall, 1 + place * number, tall, thickness), palette.ink)
    asked = int(rng.integers(count))
    fields = {"t": threshold(rng, palette), "unit": unit, "bar": asked + 1, "number": asked}
    return Scene((img,), values[asked], palette.source, fields)


BAR = Kind(
    "read_bar",
    (
        "What is the value of bar $bar? One unit is $unit pixels; bars are above $t.",
        "How high is bar $bar, if $unit pixels are a unit and bars exceed $t?",
        "Bars exceed $t. What is bar $bar in units of $unit pixels?",
        "In units of $unit pixels, how high is bar $bar (bars are above $t)?",
        "Bars are above $t, and $unit pixels are 1. How much is bar $bar?",
        "Read bar $bar from the left (bars above $t, $unit pixels a unit).",
        "How high is bar $bar, in units of $unit pixels? Bars exceed $t.",
    ),
    (
        Style(
            "numpy",
            (
                "h = (img > $t).sum(0)\nstarts = np.flatnonzero((h[1:] > 0) & (h[:-1] == 0)) + 1\n"
                "print(h[starts[$number]] // $unit)",
            ),
        ),
        Style(
            "steps",
            (
                "h = (img > $t).sum(0)\nstarts = np.flatnonzero((h[1:] > 0) & (h[:-1] == 0)) + 1\nprint(starts)",
                "bars = h[starts]\nprint(bars)",
                "print(bars[$number] // $unit)",
            ),
        ),
        Style(
            "helper",
            (
                "def bars(h):\n    return [b for a, b in zip(h, h[1:]) if b and not a]\n"
                "print(bars((img > $t).sum(0))[$number] // $unit)",
            ),
        ),
        Style(
            "loop",
            (
                "bars = []\nbefore = 0\nfor n in (img > $t).sum(0):\n    if n and not before:\n        bars.append(n)\n"
                "    before = n\nprint(bars[$number] // $unit)",
            ),
        ),
        Style(
            "ndimage",
            ("h = (img > $t).sum(0)\nlabels, n = ndimage.label(h)\nprint(h[labels == $bar][0] // $unit)",),
        ),
    ),
    _draw_bars,
)


def _draw_axis(rng: np.random.Generator, split: Split, height: int, width: int) -> Scene:
    palette = pick_palette(rng, split)
    spacing = int(rng.integers(3, 7))  # pixels between two ticks
    per_pixel = int(rng.integers(1, 6))
    ticks = int(rng.integers(3, (height - 2) // spacing + 2))
    bottom = int(rng.integers((ticks - 1) * spacing, height))
    column = int(rng.integers(2, 6))
    grey = (palette.ground + palette.ink) // 2
    img = blank(palette, height, width)
    fill(img, Box(bottom - (ticks - 1) * spacing, column, (ticks - 1) * spacing + 1, 1), grey)
    for tick in range(ticks):
        fill(img, Box(bottom - tick * spacing, column - 2, 1, 2), grey)
    pixels = int(rng.integers((ticks - 1) * spacing + 1))
    fill(img, Box(bottom - pixels, int(rng.integers(column + 3, width)), 1, 1), palette.ink)
    fields = {
        "t": int(rng.integers(grey + 10, palette.ink - 10)),
        "low": int(rng.integers(palette.ground + 10, grey - 10)),
        "column": column - 1,
        "step": per_pixel * spacing,
    }
    return Scene((img,), per_pixel * pixels, palette.source, fields)


AXIS = Kind(
    "read_axis",
    (
        "Ticks (above $low, column $column) are $step apart, the lowest is 0. Which value has the dot above $t?",
        "Ticks in column $column exceed $low and are $step apart, from 0. Which value does the dot above $t have?",
        "The dot exceeds $t. Which value does it mark? Ticks above $low in column $column: the lowest 0, $step each.",
        "What does the dot that exceeds $t mark, if column $column has ticks above $low, $step apart from 0?",
        "Read the dot above $t. Ticks are above $low in column $column, $step each from 0 at the lowest.",
        "Column $column has ticks above $low: 0 at the bottom, then $step each. What is the dot above $t?",
        "Which value does the dot that exceeds $t mark? Ticks above $low, column $column: 0 lowest, $step apart.",
    ),
    (
        Style(
            "short",
            (
                "ticks = np.flatnonzero(img[:, $column] > $low)\nrow = np.argwhere(img > $t)[0, 0]\n"
                "print((ticks[-1] - row) * $step // (ticks[1] - ticks[0]))",
            ),
        ),
        Style(
            "steps",
            (
                "ticks = np.flatnonzero(img[:, $column] > $low)\nprint(ticks)",
                "row = np.argwhere(img > $t)[0, 0]\nprint(row)",
                "print((ticks[-1] - row) * $step // (ticks[1] - ticks[0]))",
            ),
        ),
        Style(
            "helper",
            (
                "def value(row, ticks, step):\n    return (ticks[-1] - row) * step // (ticks[-1] - ticks[-2])\n"
                "ticks = np.flatnonzero(img[:, $column] > $low)\nrow = img.max(1).argmax()\n"
                "print(value(row, ticks, $step))",
            ),
        ),
        Style(
            "list",
            (
                "ticks = [r for r in range(len(img)) if img[r, $column] > $low]\nrow = (img > $t).any(1).argmax()\n"
                "print((ticks[-1] - row) * $step // (ticks[1] - ticks[0]))",
            ),
        ),
        Style(
            "interpolate",
            (
                "ticks = np.flatnonzero(img[:, $column] > $low)\nrow, column = np.argwhere(img > $t)[0]\n"
                "values = np.arange(len(ticks))[::-1] * $step\nprint(round(np.interp(row, ticks, values)))",
            ),
        ),
    ),
    _draw_axis,
)

KINDS = (BAR, AXIS)
