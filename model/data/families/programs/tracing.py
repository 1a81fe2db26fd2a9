"""Kinds that follow a line across the picture, and that read a digit by comparing it with templates."""

from __future__ import annotations

import numpy as np

from model.data.families.digits import digit_ids, digit_table, source_of
from model.data.families.programs.canvas import blank, pick_palette, threshold, with_noise
from model.data.families.programs.kind import Kind, Scene, Style
from model.data.samples.sample import Split

APART = 3  # rows between two lines, at least
TILE = 8  # pixels: a digit's side
CLOSEST = 0.7  # the true template's distance, in shares of the next best


def _draw_line(rng: np.random.Generator, split: Split, height: int, width: int) -> Scene:
    palette = pick_palette(rng, split)
    count = int(rng.integers(2, 4))
    room = height // count
    img = blank(palette, height, width)
    starts, ends = [], []
    for number in range(count):
        low, high = number * room + 1, (number + 1) * room - APART + 1  # rows of this line, ends excluded
        row = int(rng.integers(low, high))
        starts.append(row)
        drift = rng.choice((-1, 0, 1), width, p=rng.permutation((0.6, 0.25, 0.15)))
        for column in range(width):
            if column:
                row = min(max(row + int(drift[column]), low), high - 1)
            img[row, column] = palette.ink
        ends.append(row)
    asked = int(rng.integers(count))
    return Scene((img,), ends[asked], palette.source, {"t": threshold(rng, palette), "row": starts[asked]})


LINE = Kind(
    "follow_line",
    (
        "A line above $t starts at row $row of column 0. In which row does it end, in the last column?",
        "Trace the line that starts at row $row of the left edge, above $t. In which row does it end?",
        "Pixels of lines exceed $t. The one at row $row of column 0 leaves at which row of the right edge?",
        "A line leaves the left edge at row $row; its pixels exceed $t. Trace it: at which row does it end?",
        "Follow the line (above $t) from row $row, column 0. Which row has it in the last column?",
        "Lines are above $t. Where does the one from row $row at the left edge meet the right edge? Give the row.",
        "Trace the line that leaves the left edge at row $row (pixels exceed $t). At which row does it end?",
    ),
    (
        Style(
            "short",
            (
                "$m = img > $t\nr = $row\nfor c in range(1, $m.shape[1]):\n"
                "    r += next(d for d in (0, -1, 1) if $m[r + d, c])\nprint(r)",
            ),
        ),
        Style(
            "steps",
            (
                "$m = img > $t\nprint(np.flatnonzero($m[:, 0]))",
                "r = $row\nfor column in $m.T:\n    rows = np.flatnonzero(column)\n"
                "    r = rows[abs(rows - r).argmin()]\nprint(r)",
            ),
        ),
        Style(
            "helper",
            (
                "def nearest(rows, r):\n    return min(rows, key=lambda row: abs(row - r))\nr = $row\n"
                "for c in range(1, img.shape[1]):\n    r = nearest(np.flatnonzero(img[:, c] > $t), r)\nprint(r)",
            ),
        ),
        Style(
            "ndimage",
            (
                "labels, n = ndimage.label(img > $t, np.ones((3, 3)))\n"
                "print(np.flatnonzero(labels[:, -1] == labels[$row, 0])[0])",
            ),
        ),
        Style(
            "window",
            (
                "$m = img > $t\nr = $row\nfor c in range(1, $m.shape[1]):\n"
                "    r += $m[r - 1:r + 2, c].argmax() - 1\nprint(r)",
            ),
        ),
    ),
    _draw_line,
)


def _draw_digit(rng: np.random.Generator, split: Split, height: int, width: int) -> Scene:
    table, labels = digit_table()
    ids = np.array(digit_ids(split))
    while True:
        chosen = [int(rng.choice(ids[labels[ids] == value])) for value in range(10)]
        asked = int(rng.integers(10))
        canvas = np.zeros((height, width), np.uint8)
        for value, digit_id in enumerate(chosen):
            canvas[:TILE, TILE * value : TILE * (value + 1)] = table[digit_id]
        row, column = int(rng.integers(TILE + 2, height - TILE)), int(rng.integers(width - TILE))
        canvas[row : row + TILE, column : column + TILE] = (table[chosen[asked]] * rng.uniform(0.7, 1.0)).astype(
            np.uint8
        )
        img = with_noise(rng, canvas)
        part = img[row : row + TILE, column : column + TILE].astype(int)
        distances = [int(abs(img[:TILE, TILE * n : TILE * (n + 1)] - part).sum()) for n in range(10)]
        if distances[asked] < CLOSEST * min(distances[:asked] + distances[asked + 1 :]):
            break  # the digit is not nearer to another one because it is darker
    fields = {"row": row, "column": column, "row_end": row + TILE, "column_end": column + TILE}
    return Scene((img,), asked, source_of(chosen[asked]), fields)


DIGIT = Kind(
    "read_digit",
    (
        "The ten 8x8 tiles at the top are the digits 0 to 9. Which digit is at row $row, column $column?",
        "Ten tiles of 8x8 pixels are in the top rows, 0 to 9. Which of them occurs at row $row, column $column?",
        "One of the ten tiles in rows 0:8 occurs again at row $row, column $column. Which digit is it?",
        "Which tile of the top, 0 to 9, is again at row $row, column $column?",
        "Templates of 0 to 9, 8 pixels wide, fill rows 0:8. Which one is at row $row, column $column?",
        "Rows 0:8 show the digits 0 to 9, 8 columns each. Read the digit at row $row, column $column.",
        "Which of the ten tiles of 8x8 pixels in the top rows, 0 to 9, occurs again at row $row, column $column?",
    ),
    (
        Style(
            "list",
            (
                "part = img[$row:$row_end, $column:$column_end].astype(int)\n"
                "d = [abs(img[:8, 8 * k:8 * k + 8] - part).sum() for k in range(10)]\nprint(np.argmin(d))",
            ),
        ),
        Style(
            "steps",
            (
                "part = img[$row:$row_end, $column:$column_end].astype(int)\nprint(part.sum())",
                "tiles = [img[:8, 8 * k:8 * k + 8] for k in range(10)]\n"
                "print([int(abs(tile - part).sum()) for tile in tiles])",
                "print(min(range(10), key=lambda k: abs(tiles[k] - part).sum()))",
            ),
        ),
        Style(
            "helper",
            (
                "def distance(k):\n    tile = img[:8, 8 * k:8 * k + 8].astype(int)\n"
                "    return abs(tile - img[$row:$row_end, $column:$column_end]).sum()\n"
                "print(min(range(10), key=distance))",
            ),
        ),
        Style(
            "reshape",
            (
                "part = img[$row:$row_end, $column:$column_end]\n"
                "tiles = img[:8, :80].reshape(8, 10, 8).swapaxes(0, 1).astype(int)\n"
                "print(abs(tiles - part).sum((1, 2)).argmin())",
            ),
        ),
        Style(
            "loop",
            (
                "part = img[$row:$row_end, $column:$column_end].astype(int)\nbest = None\nfor k in range(10):\n"
                "    d = abs(part - img[:8, 8 * k:8 * k + 8]).sum()\n    if best is None or d < best:\n"
                "        best, digit = d, k\nprint(digit)",
            ),
        ),
    ),
    _draw_digit,
    least_width=80,
)

KINDS = (LINE, DIGIT)
