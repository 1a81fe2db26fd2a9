"""Kinds about regions: count them, count objects of one colour, find the largest, compare two halves."""

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

# Regions without holes: pixels - pairs of neighbours + squares of four.
_EULER = (
    "def regions(m):\n    v, h = m[1:] & m[:-1], m[:, 1:] & m[:, :-1]\n"
    "    return m.sum() - v.sum() - h.sum() + (v[:, 1:] & v[:, :-1]).sum()\n"
)
# Takes regions out of what is left, from one pixel to its neighbours and on.
_FLOOD = (
    "n = 0\nwhile left:\n    new, n = {left.pop()}, n + 1\n    while new:\n"
    "        new = {(r + y, c + x) for r, c in new for y, x in ((1, 0), (-1, 0), (0, 1), (0, -1))} & left\n"
    "        left -= new\nprint(n)"
)


def _draw_components(rng: np.random.Generator, split: Split, height: int, width: int) -> Scene:
    palette = pick_palette(rng, split)
    count = int(rng.integers(1, 9))
    img = blank(palette, height, width)
    for box in squares(rng, height, width, count):
        fill_shape(img, pick_shape(rng), box, palette.ink)
    return Scene((img,), count, palette.source, {"t": threshold(rng, palette)})


COMPONENTS = Kind(
    "connected_components",
    (
        "How many connected regions are above $t?",
        "How many separate regions exceed $t?",
        "Count the blobs that exceed $t.",
        "Above $t, how many separate blobs are there?",
        "Count the connected components above $t.",
        "Into how many regions do the pixels above $t fall?",
        "How many separate blobs exceed $t?",
    ),
    (
        Style("one line", ("print(ndimage.label(img > $t)[1])",)),
        Style("steps", ("$m = img > $t\nprint($m.sum())", "labels, n = ndimage.label($m)\nprint(n)")),
        Style("helper", (_EULER + "print(regions(img > $t))",)),
        Style(
            "flood fill",
            ("left = set(zip(*np.nonzero(img > $t)))\n" + _FLOOD,),
        ),
        Style("labels", ("labels, n = ndimage.label(img > $t)\nprint(len(np.unique(labels)) - 1)",)),
    ),
    _draw_components,
)


def _draw_largest(rng: np.random.Generator, split: Split, height: int, width: int) -> Scene:
    palette = pick_palette(rng, split)
    img, areas = blank(palette, height, width), []
    for box in squares(rng, height, width, int(rng.integers(2, 8))):
        shape = pick_shape(rng)
        fill_shape(img, shape, box, palette.ink)
        areas.append(shape_area(shape, box.height))
    return Scene((img,), max(areas), palette.source, {"t": threshold(rng, palette)})


LARGEST = Kind(
    "largest_region",
    (
        "How many pixels has the largest region above $t?",
        "How large is the largest region, in pixels, of those above $t?",
        "Of all regions that exceed $t, find the largest: how many pixels has it?",
        "The largest of the regions above $t: how large is it?",
        "What is the area of the largest connected region above $t?",
        "Find the largest blob above $t. How many pixels has it?",
        "Of the regions that exceed $t, how large is the largest, in pixels?",
    ),
    (
        Style("one line", ("print(np.bincount(ndimage.label(img > $t)[0].ravel())[1:].max())",)),
        Style(
            "steps",
            (
                "labels, n = ndimage.label(img > $t)\nprint(n)",
                "sizes = np.bincount(labels.ravel())[1:]\nprint(sizes)",
                "print(sizes.max())",
            ),
        ),
        Style(
            "helper",
            (
                "def largest(m):\n    labels, n = ndimage.label(m)\n    return np.bincount(labels.ravel())[1:].max()\n"
                "print(largest(img > $t))",
            ),
        ),
        Style(
            "loop", ("labels, n = ndimage.label(img > $t)\nprint(max((labels == k).sum() for k in range(1, n + 1)))",)
        ),
        Style(
            "ndimage",
            (
                "$m = img > $t\nlabels, n = ndimage.label($m)\n"
                "print(int(ndimage.sum($m, labels, range(1, n + 1)).max()))",
            ),
        ),
    ),
    _draw_largest,
)


def _draw_objects(rng: np.random.Generator, split: Split, height: int, width: int) -> Scene:
    palette = pick_palette(rng, split)
    img = np.full((height, width, 3), palette.ground, np.uint8)
    asked, answer = int(rng.integers(3)), int(rng.integers(6))
    others = int(rng.integers(not answer, 4))
    for number, box in enumerate(squares(rng, height, width, answer + others)):
        channel = asked if number < answer else (asked + int(rng.integers(1, 3))) % 3
        fill_shape(img[..., channel], pick_shape(rng), box, palette.ink)
    return Scene((img,), answer, palette.source, {"colour": COLOURS[asked], "channel": asked})


OBJECTS = Kind(
    "count_objects",
    (
        "How many $colour shapes are there?",
        "What number of $colour shapes do you see?",
        "Of the shapes, how many are $colour?",
        "What is the count of $colour shapes?",
        "Count the $colour shapes.",
        "How many shapes are $colour?",
        "What is the number of $colour shapes?",
    ),
    (
        Style("one line", ("print(ndimage.label(img[..., $channel] > 128)[1])",)),
        Style(
            "steps",
            (
                "$m = img[..., $channel] > 128\nprint($m.sum())",
                "labels, n = ndimage.label($m)\nprint(n)",
            ),
        ),
        Style("helper", (_EULER + "print(regions(img[..., $channel] > 128))",)),
        Style(
            "flood fill",
            ("left = set(zip(*np.nonzero(img[..., $channel] > 128)))\n" + _FLOOD,),
        ),
        Style(
            "boxes", ("labels, n = ndimage.label(img[..., $channel] > 128)\nprint(len(ndimage.find_objects(labels)))",)
        ),
    ),
    _draw_objects,
    colour=True,
)


def _draw_halves(rng: np.random.Generator, split: Split, height: int, width: int) -> Scene:
    palette = pick_palette(rng, split)
    upright = bool(rng.integers(2))  # the halves lie side by side
    middle = (width if upright else height) // 2
    first = Box(0, 0, height, middle) if upright else Box(0, 0, middle, width)
    while True:
        drawn = boxes(rng, height, width, int(rng.integers(2, 7)))
        in_first = sum(box.shared(first) for box in drawn)
        in_second = sum(box.area for box in drawn) - in_first
        if in_first != in_second:
            break
    img = blank(palette, height, width)
    for box in drawn:
        fill(img, box, palette.ink)
    names = ("left", "right") if upright else ("top", "bottom")
    cuts = (f":, :{middle}", f":, {middle}:") if upright else (f":{middle}", f"{middle}:")
    fields = {
        "t": threshold(rng, palette),
        "first": names[0],
        "second": names[1],
        "in_first": cuts[0],
        "in_second": cuts[1],
    }
    return Scene((with_noise(rng, img),), names[in_second > in_first], palette.source, fields)


HALVES = Kind(
    "compare_regions",
    (
        "Which half has more pixels above $t, $first or $second?",
        "$first or $second: where do more pixels exceed $t?",
        "Which half has more that exceeds $t, $first or $second?",
        "Pixels that exceed $t: are there more $first or $second?",
        "Compare the halves: are more pixels above $t at the $first or at the $second?",
        "Where are more pixels above $t, $first or $second?",
        "$first or $second: which half has more pixels that exceed $t?",
    ),
    (
        Style(
            "one line",
            ('print("$first" if (img[$in_first] > $t).sum() > (img[$in_second] > $t).sum() else "$second")',),
        ),
        Style(
            "steps",
            (
                "a = (img[$in_first] > $t).sum()\nb = (img[$in_second] > $t).sum()\nprint(a, b)",
                'print("$first" if a > b else "$second")',
            ),
        ),
        Style(
            "helper",
            (
                "def n(part):\n    return (part > $t).sum()\n"
                'print("$first" if n(img[$in_first]) > n(img[$in_second]) else "$second")',
            ),
        ),
        Style(
            "mask first",
            ('$m = img > $t\nprint("$first" if 2 * $m[$in_first].sum() > $m.sum() else "$second")',),
        ),
        Style(
            "dictionary",
            (
                '$m = img > $t\nn = {"$first": $m[$in_first].sum(), "$second": $m[$in_second].sum()}\n'
                "print(max(n, key=n.get))",
            ),
        ),
    ),
    _draw_halves,
)

KINDS = (COMPONENTS, LARGEST, OBJECTS, HALVES)
