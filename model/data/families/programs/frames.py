"""Kinds about two or three frames: how many pixels change, what moves where, what is new."""

from __future__ import annotations

import numpy as np

from model.data.families.programs.canvas import Box, blank, boxes, fill, pick_palette, threshold
from model.data.families.programs.kind import Kind, Scene, Style
from model.data.samples.sample import Split

DIRECTIONS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


def _path(rng: np.random.Generator, height: int, width: int, frames: int) -> tuple[list[Box], str]:
    """A rectangle's place in each frame, and its direction."""
    direction = list(DIRECTIONS)[int(rng.integers(4))]
    rows, columns = DIRECTIONS[direction]
    tall, wide = int(rng.integers(4, 10)), int(rng.integers(4, 10))
    step = int(rng.integers(1, 18 // (frames - 1) // 2 + 1))
    travel = step * (frames - 1)
    row = int(rng.integers(travel * (rows < 0), height - tall - travel * (rows > 0) + 1))
    column = int(rng.integers(travel * (columns < 0), width - wide - travel * (columns > 0) + 1))
    return [Box(row + rows * step * n, column + columns * step * n, tall, wide) for n in range(frames)], direction


def _draw_changed(rng: np.random.Generator, split: Split, height: int, width: int) -> Scene:
    palette = pick_palette(rng, split)
    (before, after), _ = _path(rng, height, width, 2)
    frames = []
    still = [box for box in boxes(rng, height, width, 4) if not box.shared(before) and not box.shared(after)]
    for place in (before, after):
        img = blank(palette, height, width)
        for box in (*still, place):
            fill(img, box, palette.ink)
        frames.append(img)
    return Scene(tuple(frames), 2 * (before.area - before.shared(after)), palette.source)


CHANGED = Kind(
    "diff_frames",
    (
        "How many pixels differ between the two frames?",
        "How many pixels are not the same in the second frame?",
        "Count the pixels that differ in both frames.",
        "The frames are not the same: in how many pixels?",
        "Compare the two frames: how many pixels change?",
        "In how many pixels is the second frame unlike the first?",
        "Count the pixels that are not the same in both frames.",
    ),
    (
        Style("one line", ("print((images[0] != images[1]).sum())",)),
        Style("steps", ("a, b = images\nprint(a.shape)", "$m = a != b\nprint($m.sum())")),
        Style("helper", ("def changed(a, b):\n    return (a != b).sum()\nprint(changed(images[0], images[1]))",)),
        Style("integers", ("d = images[1].astype(int) - images[0]\nprint((abs(d) > 0).sum())",)),
        Style("numpy", ("a, b = images\nprint(np.count_nonzero(a - b))",)),
    ),
    _draw_changed,
)


def _draw_motion(rng: np.random.Generator, split: Split, height: int, width: int) -> Scene:
    palette = pick_palette(rng, split)
    places, direction = _path(rng, height, width, int(rng.integers(2, 4)))
    frames = []
    for place in places:
        frames.append(blank(palette, height, width))
        fill(frames[-1], place, palette.ink)
    return Scene(tuple(frames), direction, palette.source, {"t": threshold(rng, palette)})


_WORD = 'print("down" if dr > 0 else "up" if dr < 0 else "right" if dc > 0 else "left")'
MOTION = Kind(
    "track_motion",
    (
        "Which way does the block above $t move: up, down, left or right?",
        "In which direction does the block above $t go: up, down, left or right?",
        "Up, down, left or right: where does the block that exceeds $t travel?",
        "The block exceeds $t. Which direction is it: up, down, left or right?",
        "The block is above $t. Does it move up, down, left or right?",
        "Up, down, left or right: where does the block (above $t) go?",
        "In which direction, up, down, left or right, does the block that exceeds $t travel?",
    ),
    (
        Style(
            "short",
            (f"a, b = (np.argwhere(f > $t)[0] for f in (images[0], images[-1]))\ndr, dc = b - a\n{_WORD}",),
        ),
        Style(
            "steps",
            (
                "places = [np.argwhere(f > $t).min(0) for f in images]\nprint(*places)",
                f"dr, dc = places[-1] - places[0]\n{_WORD}",
            ),
        ),
        Style(
            "helper",
            (
                "def centre(f):\n    return np.argwhere(f > $t).mean(0)\n"
                f"dr, dc = centre(images[-1]) - centre(images[0])\n{_WORD}",
            ),
        ),
        Style(
            "rows and columns",
            (
                "a, b = images[0] > $t, images[-1] > $t\ndr = int(b.any(1).argmax()) - int(a.any(1).argmax())\n"
                f"dc = int(b.any(0).argmax()) - int(a.any(0).argmax())\n{_WORD}",
            ),
        ),
        Style(
            "ndimage",
            (
                "a, b = (np.array(ndimage.center_of_mass(f > $t)) for f in (images[0], images[-1]))\n"
                f"dr, dc = b - a\n{_WORD}",
            ),
        ),
    ),
    _draw_motion,
)


def _draw_new(rng: np.random.Generator, split: Split, height: int, width: int) -> Scene:
    palette = pick_palette(rng, split)
    old, new = int(rng.integers(1, 5)), int(rng.integers(5))
    drawn = boxes(rng, height, width, old + new)
    first = blank(palette, height, width)
    for box in drawn[:old]:
        fill(first, box, palette.ink)
    second = first.copy()
    for box in drawn[old:]:
        fill(second, box, palette.ink)
    return Scene((first, second), new, palette.source, {"t": threshold(rng, palette)})


NEW = Kind(
    "new_objects",
    (
        "How many objects above $t are new in the second frame?",
        "How many more objects that exceed $t has the second frame?",
        "The second frame has more objects above $t: by how many?",
        "Count the objects that exceed $t in the second frame and not in the first.",
        "Count the objects above $t that only the second frame has.",
        "How many objects (above $t) appear in the second frame?",
        "By how many objects that exceed $t has the second frame more?",
    ),
    (
        Style("one line", ("print(ndimage.label((images[1] > $t) & (images[0] <= $t))[1])",)),
        Style("steps", ("$m = (images[1] > $t) & (images[0] <= $t)\nprint($m.sum())", "print(ndimage.label($m)[1])")),
        Style(
            "helper",
            ("def count(f):\n    return ndimage.label(f > $t)[1]\nprint(count(images[1]) - count(images[0]))",),
        ),
        Style(
            "corners",
            (
                # A rectangle's first pixel has none above it and none to its left.
                "$m = np.pad(images[1] != images[0], 1)\nprint(($m[1:, 1:] & ~$m[:-1, 1:] & ~$m[1:, :-1]).sum())",
            ),
        ),
        Style("each", ("n = [ndimage.label(f > $t)[1] for f in images]\nprint(n[1] - n[0])",)),
    ),
    _draw_new,
)

KINDS = (CHANGED, MOTION, NEW)
