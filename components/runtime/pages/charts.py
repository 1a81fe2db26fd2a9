"""Line charts as inline SVG, coloured by the page's CSS variables so that they follow its light and dark themes."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from components.runtime.pages.template import render

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 500, 210  # pixels, as everything below
LEFT, RIGHT, TOP, BOTTOM = 46, 488, 12, 176  # edges of the plot
COLOURS = 6
MAX_POINTS = 240
SMOOTH_ABOVE = 40  # points
_SVG = Path(__file__).with_name("line_chart.svg")
_HTML = Path(__file__).with_name("line_chart.html")


@dataclass(frozen=True)
class Tick:
    """A labelled value of an axis, and where along the axis it lies."""

    value: float
    at: float


@dataclass(frozen=True)
class Curve:
    """One series as SVG path data: the line, and if that is smoothed, ``raw``, the points as they are; else ""."""

    name: str
    colour: int
    line: str
    raw: str


def line_chart(series: Mapping[str, Points], *, x_label: str, y_label: str) -> Markup:
    """Curves over one pair of axes, with a legend; empty text if no series has two finite points.

    Args:
        series: name -> (x, y) points in order of x. At most six have colours of their own.
        x_label, y_label: what the axes measure, with the unit.
    """
    drawn = _drawn(series)
    return render(_HTML, x_label=x_label, y_label=y_label, standalone=False, **drawn) if drawn else Markup()


def picture(points: Points, *, x_label: str, y_label: str) -> str:
    """One curve as a Markdown image that needs no other file; empty text without two finite points.

    Kubeflow's UI shows Markdown without its HTML, and of ``data:`` addresses only those of images.
    """
    if not (drawn := _drawn({"": points})):
        return ""
    svg = render(_SVG, x_label=x_label, y_label=y_label, standalone=True, **drawn)
    return f"![{y_label} by {x_label}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


def _drawn(series: Mapping[str, Points]) -> dict[str, Any]:
    """What the templates place; empty if there is nothing to draw."""
    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    finite = {name: points for name, points in finite.items() if len(points) > 1}
    if not finite:
        return {}
    xs = [x for points in finite.values() for x, _ in points]
    ys = [y for points in finite.values() for _, y in points]
    low, high = _padded(min(ys), max(ys))
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)

    def across(x: float) -> float:
        return round(LEFT + (x - x_low) / (x_high - x_low) * (RIGHT - LEFT), 1)

    def down(y: float) -> float:
        return round(BOTTOM - (y - low) / (high - low) * (BOTTOM - TOP), 1)

    def path(points: Points) -> str:
        stride = max(1, math.ceil(len(points) / MAX_POINTS))
        return "M" + "L".join(f"{across(x):.1f} {down(y):.1f}" for x, y in [*points[:-1:stride], points[-1]])

    def curve(number: int, name: str, points: Points) -> Curve:
        if len(points) <= SMOOTH_ABOVE:
            return Curve(name, number % COLOURS, path(points), "")
        return Curve(name, number % COLOURS, path(smoothed(points)), path(points))

    return {
        "width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "bottom": BOTTOM,
        "x_ticks": [Tick(value, across(value)) for value in ticks(x_low, x_high, 5)],
        "y_ticks": [Tick(value, down(value)) for value in ticks(low, high, 4)],
        "curves": [curve(number, name, points) for number, (name, points) in enumerate(finite.items())],
    }  # fmt: skip


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def smoothed(points: Points) -> list[tuple[float, float]]:
    """Mean over a centred window of about a twentieth of the points, narrower at the ends: it does not lag."""
    reach = len(points) // 40
    result = []
    for index, (x, _) in enumerate(points):
        near = min(reach, index, len(points) - 1 - index)
        window = [y for _, y in points[index - near : index + near + 1]]
        result.append((x, sum(window) / len(window)))
    return result


def thinned(points: Points, most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most ``most`` points, each the mean of equally many neighbours, the last of what is left.

    For long curves: the time that smoothing takes grows with the square of the points.
    """
    stride = max(1, math.ceil(len(points) / most))
    groups = (points[first : first + stride] for first in range(0, len(points), stride))
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _padded(low: float, high: float) -> tuple[float, float]:
    """Limits of an axis a little wider than its values, from 0 where 0 is near."""
    span = high - low or abs(high) or 1.0
    padded = low - 0.06 * span
    return (0.0 if low >= 0 > padded or 0 <= low < 0.35 * high else padded), high + 0.06 * span
