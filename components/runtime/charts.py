"""Charts as inline SVG, coloured by the page's CSS variables so that they follow its light and dark themes."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 500, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 34
MAX_POINTS = 240
_STYLE = (
    "text{font:11px sans-serif;fill:#666b75}line{stroke:#666b75}line.grid{stroke:#ecece8}"
    "path{fill:none;stroke:#2a78d6;stroke-width:2}path.raw{stroke-width:1;opacity:.3}"
)
"""Of a picture that stands by itself, without the report's page."""
SMOOTH_ABOVE = 40


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


def figure(value: float) -> str:
    """A number as short as it stays readable: 0.25, 12.5, 3,400, 15k, 2.1M."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """Whole seconds in words: 12 s, 3 min 12 s, 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def smoothed(points: Points) -> list[tuple[float, float]]:
    """Mean over a centred window of about a twentieth of the points, narrower at the ends: it does not lag behind."""
    reach = len(points) // 40
    result = []
    for index, (x, _) in enumerate(points):
        near = min(reach, index, len(points) - 1 - index)
        window = [y for _, y in points[index - near : index + near + 1]]
        result.append((x, sum(window) / len(window)))
    return result


def line_chart(series: Mapping[str, Points], *, x_label: str, y_label: str, y_range: tuple[float, float] | None = None,
               y_lines: Mapping[str, float] | None = None) -> str:  # fmt: skip
    """Curves over one pair of axes; empty text if no series has two finite points.

    Args:
        series: name -> (x, y) points in order of x. At most six are told apart by colour.
        x_label, y_label: what the axes measure, with the unit.
        y_range: fixed limits, else those of the data.
        y_lines: name -> y of dashed reference lines, e.g. a chance level.
    """
    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    finite = {name: points for name, points in finite.items() if len(points) > 1}
    if not finite:
        return ""
    xs = [x for points in finite.values() for x, _ in points]
    ys = [y for points in finite.values() for _, y in points] + list((y_lines or {}).values())
    low, high = y_range or _padded(min(ys), max(ys))
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        up = (min(max(y, low), high) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return LEFT + across, HEIGHT - BOTTOM - up

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)} by {escape(x_label)}">']
    for value in ticks(low, high, 4):
        _, y = place(x_low, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{figure(value)}</text>')
    for value in ticks(x_low, x_high, 5):
        x, _ = place(value, low)
        parts.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 4}"/>'
        )
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{figure(value)}</text>'
        )
    baseline = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{baseline}" y2="{baseline}"/>')
    parts.append(f'<text class="label" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{escape(x_label)}</text>')
    for name, value in (y_lines or {}).items():
        x, y = place(x_high, value)
        parts.append(f'<line class="reference" x1="{LEFT}" x2="{x:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{y - 4:.1f}" text-anchor="end">{escape(name)}</text>')
    for index, (name, points) in enumerate(finite.items()):
        noisy = len(points) > SMOOTH_ABOVE
        if noisy:
            parts.append(_path(points, place, index, "raw"))
        parts.append(_path(smoothed(points) if noisy else points, place, index, "line", name))
    return "".join(parts) + "</svg>" + _legend(list(finite))


def picture(points: Points, *, x_label: str, y_label: str) -> str:
    """One curve as a Markdown image that needs no other file; empty text without two finite points.

    Kubeflow's UI shows Markdown without its HTML, and of ``data:`` addresses only those of images.
    """
    drawn = line_chart({"": points}, x_label=x_label, y_label=y_label)
    if not drawn:
        return ""
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}"'
    alone = drawn.replace("<svg", opening, 1).replace(">", f"><style>{_STYLE}</style>", 1)
    return f"![{y_label} by {x_label}](data:image/svg+xml;base64,{base64.b64encode(alone.encode()).decode()})"


def bar_rows(rows: Sequence[tuple[str, float]], unit: str) -> str:
    """Horizontal bars as an HTML list, each with its number and ``unit``; zero is at the left edge."""
    top = max((value for _, value in rows), default=0.0) or 1.0
    items = "".join(
        f'<div class="bar"><span class="name">{escape(name)}</span><span class="track"><span class="fill" '
        f'style="width:{100 * value / top:.2f}%"></span></span>'
        f'<span class="value">{figure(value)} {escape(unit)}</span></div>'
        for name, value in rows
    )
    return f'<div class="bars">{items}</div>'


def _padded(low: float, high: float) -> tuple[float, float]:
    span = high - low or abs(high) or 1.0
    padded = low - 0.06 * span
    return (0.0 if low >= 0 > padded or 0 <= low < 0.35 * high else padded), high + 0.06 * span


def _path(points: Points, place, index: int, kind: str, title: str = "") -> str:
    stride = max(1, math.ceil(len(points) / MAX_POINTS))
    kept = [*points[:-1:stride], points[-1]]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in (place(*point) for point in kept))
    return f'<path class="{kind} s{index % 6}" d="{path}"><title>{escape(title)}</title></path>'


def _legend(names: Sequence[str]) -> str:
    if len(names) < 2:
        return ""
    return '<div class="legend">' + "".join(
        f'<span><i class="key s{index % 6}"></i>{escape(name)}</span>' for index, name in enumerate(names)
    ) + "</div>"  # fmt: skip
