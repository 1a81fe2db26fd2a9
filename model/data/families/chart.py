"""Bar charts of real measurements (data: scikit-learn's tables, drawn by matplotlib; source: ours).

Whole tables are held out, so the eval charts show other quantities than the training charts.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model.codec.image import encode_png
from model.data.families.visual import Drawn, package_folder, visual_family
from model.data.samples.sample import Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle


@dataclass(frozen=True)
class Table:
    """A table below sklearn/datasets/data, whose first ``columns`` columns are measurements."""

    file: str
    columns: int
    delimiter: str | None = ","
    skip: int = 1


TABLES: dict[Split, dict[str, Table]] = {
    "train": {
        "iris": Table("iris.csv", 4),
        "breast_cancer": Table("breast_cancer.csv", 30),
        "diabetes": Table("diabetes_data_raw.csv.gz", 10, delimiter=None, skip=0),
    },
    "eval": {
        "wine": Table("wine_data.csv", 13),
        "linnerud": Table("linnerud_exercise.csv", 3, delimiter=None),
    },
}
SIZE = 84  # pixels: 3 x 3 language-model tokens
MARGIN = 0.08  # least difference of the tallest and the shortest bar to the others, in shares of the tallest
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#333333", "#9467bd", "#ff7f0e")


@cache
def table_rows(split: Split, name: str) -> NDArray[np.float64]:
    """The numbers of a table of ``TABLES``: float64 [rows, columns]."""
    table = TABLES[split][name]
    raw = (package_folder("sklearn") / "datasets/data" / table.file).read_bytes()
    lines = (gzip.decompress(raw) if table.file.endswith(".gz") else raw).decode().splitlines()[table.skip :]
    return np.loadtxt(lines, delimiter=table.delimiter, usecols=range(table.columns))


def sources(split: Split) -> list[str]:
    return [f"sklearn.{name}" for name in TABLES[split]]


class _Plot:
    """One figure that is redrawn for each sample: building axes costs more than drawing them."""

    @cached_property
    def _figure(self) -> Figure:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # here: most processes draw no chart
        from matplotlib.figure import Figure

        figure = Figure(figsize=(1, 1), dpi=SIZE, facecolor="white")
        FigureCanvasAgg(figure)
        return figure

    @cached_property
    def _bars(self) -> list[Rectangle]:
        axes = self._figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, 1), ylim=(0, 1))
        return list(axes.bar(np.arange(5), np.ones(5), align="edge", bottom=0.04))

    def draw(self, heights: NDArray[np.float64], colour: str, filled: float) -> NDArray[np.uint8]:
        """Bars from left to right.

        Args:
            heights: of 3 to 5 bars, in (0, 1].
            colour: as matplotlib names it.
            filled: share of a bar's place that it fills, 0 to 1.

        Returns:
            uint8 [84, 84, 3].
        """
        place = 0.92 / len(heights)
        for i, bar in enumerate(self._bars):
            bar.set_visible(i < len(heights))
            if i < len(heights):
                left = 0.04 + place * (i + (1 - filled) / 2)
                bar.set(x=left, width=place * filled, height=0.9 * heights[i], facecolor=colour)
        canvas = self._figure.canvas
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]


_PLOT = _Plot()


def _values(rng: np.random.Generator, split: Split) -> tuple[NDArray[np.float64], str]:
    """3-5 cells of one column as shares of the largest, the extremes clear of the others; and their table."""
    count = int(rng.integers(3, 6))  # drawn first: more bars are refused more often
    while True:
        name = list(TABLES[split])[rng.integers(len(TABLES[split]))]
        rows = table_rows(split, name)
        values = rows[rng.choice(len(rows), count, replace=False), rng.integers(rows.shape[1])]
        if values.min() <= 0:
            continue
        heights = values / values.max()
        ranked = np.sort(heights)
        if ranked[0] >= 0.04 and ranked[1] - ranked[0] >= MARGIN and ranked[-1] - ranked[-2] >= MARGIN:
            return heights, f"sklearn.{name}"


def _draw(rng: np.random.Generator, split: Split) -> Drawn:
    heights, source = _values(rng, split)
    asked = rng.choice(3, p=(0.5, 0.25, 0.25))
    tallest, shortest, count = int(heights.argmax()) + 1, int(heights.argmin()) + 1, len(heights)
    question = ("Which bar is tallest?", "Which bar is shortest?", "How many bars?")[asked]
    answer = str((tallest, shortest, count)[asked])
    pixels_HWC = _PLOT.draw(heights, COLOURS[rng.integers(len(COLOURS))], rng.uniform(0.6, 0.85))
    caption = f"{count} bars, tallest {tallest}, shortest {shortest}"
    return Drawn(encode_png(pixels_HWC), question, answer, caption, source)


CHART = visual_family("chart", "reasoning", "image", "exact", _draw, sources)
FAMILIES = (CHART,)
