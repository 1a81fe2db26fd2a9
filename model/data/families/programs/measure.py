"""Kinds that measure: a crop, a binary picture, lengths and areas."""

from __future__ import annotations

import numpy as np

from model.data.families.programs.canvas import (
    COLOURS,
    Box,
    blank,
    boxes,
    fill,
    fill_shape,
    pick_palette,
    pick_shape,
    shape_area,
    squares,
    threshold,
    with_noise,
)
from model.data.families.programs.kind import Kind, Scene, Style
from model.data.samples.sample import Split


def _window(rng: np.random.Generator, side: int) -> tuple[int, int]:
    length = int(rng.integers(side // 3, side - 1))
    start = int(rng.integers(side - length))
    return start, start + length


def _draw_crop(rng: np.random.Generator, split: Split, height: int, width: int) -> Scene:
    palette = pick_palette(rng, split)
    drawn = boxes(rng, height, width, int(rng.integers(2, 7)))
    img = blank(palette, height, width)
    for box in drawn:
        fill(img, box, palette.ink)
    (r0, r1), (c0, c1) = _window(rng, height), _window(rng, width)
    window = Box(r0, c0, r1 - r0, c1 - c0)
    fields = {"t": threshold(rng, palette), "r0": r0, "r1": r1, "c0": c0, "c1": c1}
    return Scene((with_noise(rng, img),), sum(box.shared(window) for box in drawn), palette.source, fields)


CROP = Kind(
    "crop",
    (
        "How many pixels of rows $r0:$r1, columns $c0:$c1 are above $t?",
        "Look at rows $r0:$r1, columns $c0:$c1: how many pixels there exceed $t?",
        "Rows $r0:$r1 and columns $c0:$c1 only: count what exceeds $t.",
        "In rows $r0:$r1 and columns $c0:$c1, how many pixels exceed $t?",
        "Crop rows $r0:$r1, columns $c0:$c1. How many pixels are above $t?",
        "Count the pixels above $t in rows $r0:$r1 and columns $c0:$c1.",
        "Look at rows $r0:$r1, columns $c0:$c1 only: how many pixels exceed $t?",
    ),
    (
        Style("one line", ("print((img[$r0:$r1, $c0:$c1] > $t).sum())",)),
        Style("steps", ("part = img[$r0:$r1, $c0:$c1]\nprint(part.shape)", "print((part > $t).sum())")),
        Style("helper", ("def count(a, t):\n    return (a > t).sum()\nprint(count(img[$r0:$r1, $c0:$c1], $t))",)),
        Style("mask first", ("$m = img > $t\nprint($m[$r0:$r1, $c0:$c1].sum())",)),
        Style("numpy", ("part = img[$r0:$r1, $c0:$c1]\nprint(np.count_nonzero(part > $t))",)),
    ),
    _draw_crop,
)


def _draw_binarise(rng: np.random.Generator, split: Split, height: int, width: int) -> Scene:
    palette = pick_palette(rng, split)
    drawn = boxes(rng, height, width, int(rng.integers(3, 9)))
    bright = int(rng.integers(1, len(drawn)))
    t = int(rng.integers(palette.ground + 60, palette.ink - 20))
    faint = int(rng.integers(palette.ground + 20, t - 20))  # of objects that the threshold removes
    img = blank(palette, height, width)
    for number, box in enumerate(drawn):
        fill(img, box, palette.ink if number < bright else faint)
    area = sum(box.area for box in drawn[:bright])
    return Scene((with_noise(rng, img),), 100 * area // (height * width), palette.source, {"t": t})


BINARISE = Kind(
    "binarise",
    (
        "Binarise at $t. What percentage of the pixels is on, rounded down?",
        "Threshold at $t. How many percent of the pixels are on, rounded down?",
        "How many percent of the picture are above $t, rounded down?",
        "Threshold the pixels at $t: which percentage is on? Round it down.",
        "What percentage of the pixels is above $t, rounded down?",
        "Which share of the picture is above $t? Give whole percent, rounded down.",
        "Threshold the picture at $t: how many percent are on, rounded down?",
    ),
    (
        Style("one line", ("print(100 * (img > $t).sum() // img.size)",)),
        Style("steps", ("$m = img > $t\nprint($m.sum(), $m.size)", "print(100 * $m.sum() // $m.size)")),
        Style("helper", ("def percent(a):\n    return 100 * a.sum() // a.size\nprint(percent(img > $t))",)),
        Style("numpy", ("$m = np.where(img > $t, 1, 0)\nprint(100 * $m.sum() // img.size)",)),
        Style("rows", ("n = sum((row > $t).sum() for row in img)\nprint(100 * n // img.size)",)),
    ),
    _draw_binarise,
)


def _draw_length(rng: np.random.Generator, split: Split, height: int, width: int) -> Scene:
    palette = pick_palette(rng, split)
    across = bool(rng.integers(2))
    side, reach = (height, width) if across else (width, height)
    count = int(rng.integers(2, 6))
    places = sorted((2 * rng.permutation(side // 2 - 1)[:count] + 1).tolist())  # never next to each other
    lengths = rng.integers(3, reach - 1, count).tolist()
    img = blank(palette, height, width)
    for place, length in zip(places, lengths, strict=True):
        start = int(rng.integers(reach - length))
        fill(img, Box(place, start, 1, length) if across else Box(start, place, length, 1), palette.ink)
    t = threshold(rng, palette)
    fields = {
        "t": t,
        "way": "horizontal" if across else "vertical",
        "axis": int(across),
        "lines": f"img > {t}" if across else f"img.T > {t}",
    }
    return Scene((img,), max(lengths), palette.source, fields)


LENGTH = Kind(
    "measure_length",
    (
        "How long is the longest $way line above $t, in pixels?",
        "Of the $way lines whose pixels exceed $t, how long is the longest?",
        "What length has the longest $way line above $t?",
        "Find the length of the longest $way line that exceeds $t.",
        "The $way lines are above $t. How long is the longest?",
        "Measure the longest $way line (above $t).",
        "What is the length of the longest $way line whose pixels exceed $t?",
    ),
    (
        Style("one line", ("print((img > $t).sum($axis).max())",)),
        Style("steps", ("n = (img > $t).sum($axis)\nprint(n[n > 0])", "print(n.max())")),
        Style(
            "helper",
            (
                "def longest(line):\n    best = run = 0\n    for on in line:\n        run = run + 1 if on else 0\n"
                "        best = max(best, run)\n    return best\nprint(max(longest(a) for a in $lines))",
            ),
        ),
        Style("loop", ("best = 0\nfor line in $lines:\n    best = max(best, line.sum())\nprint(best)",)),
        Style("sorted", ("$m = img > $t\nn = np.sort($m.sum($axis))\nprint(n[-1])",)),
    ),
    _draw_length,
)


def _draw_area(rng: np.random.Generator, split: Split, height: int, width: int) -> Scene:
    palette = pick_palette(rng, split)
    img = np.full((height, width, 3), palette.ground, np.uint8)
    asked, answer = int(rng.integers(3)), 0
    for channel, box in enumerate(squares(rng, height, width, 3)):
        shape = pick_shape(rng)
        fill_shape(img[..., channel], shape, box, palette.ink)
        if channel == asked:
            answer = shape_area(shape, box.height)
    return Scene((img,), answer, palette.source, {"colour": COLOURS[asked], "channel": asked})


AREA = Kind(
    "measure_area",
    (
        "What is the area of the $colour shape, in pixels?",
        "How large is the area of the $colour shape?",
        "The $colour shape: how large is it, in pixels?",
        "Of how many pixels is the $colour shape?",
        "How many pixels has the $colour shape?",
        "Measure the area of the $colour shape.",
        "How large is the $colour shape, in pixels?",
    ),
    (
        Style("one line", ("print((img[..., $channel] > 128).sum())",)),
        Style("steps", ("$m = img[..., $channel] > 128\nprint($m.shape)", "print($m.sum())")),
        Style("helper", ("def area(channel):\n    return (img[..., channel] > 128).sum()\nprint(area($channel))",)),
        Style("places", ("print(len(np.argwhere(img[..., $channel] > 128)))",)),
        Style("numpy", ("channel = img[..., $channel]\nprint(np.count_nonzero(channel > 128))",)),
    ),
    _draw_area,
    colour=True,
)

KINDS = (CROP, BINARISE, LENGTH, AREA)
