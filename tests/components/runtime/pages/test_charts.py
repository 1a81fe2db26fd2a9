"""Charts show what can be drawn, with round ticks and short numbers."""

from __future__ import annotations

import base64
import math

import pytest

from components.runtime.pages.charts import line_chart, picture, smoothed, thinned, ticks
from components.runtime.pages.numbers import duration, figure


@pytest.mark.parametrize(("low", "high", "expected"), [
    (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0, 350, [0, 100, 200, 300]), (-3, 7, [-2, 0, 2, 4, 6]), (5, 5, [5]),
])  # fmt: skip
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]):
    assert ticks(low, high) == expected


@pytest.mark.parametrize(("value", "text"), [(0.123456, "0.123"), (3400, "3,400"), (15200, "15.2k"), (2.1e6, "2.1M")])
def test_figures_are_short(value: float, text: str):
    assert figure(value) == text


def test_smoothing_keeps_a_straight_line():
    line = [(float(i), 2.0 * i) for i in range(200)]
    assert [y for _, y in smoothed(line)] == pytest.approx([y for _, y in line])


def test_thinning_keeps_the_means_of_neighbours():
    points = [(float(i), float(i % 3)) for i in range(10)]
    assert thinned(points, 4) == [(1.0, 1.0), (4.0, 1.0), (7.0, 1.0), (9.0, 0.0)]
    assert thinned(points, 10) == points and thinned([], 10) == []


def test_a_chart_leaves_out_what_cannot_be_drawn():
    assert line_chart({"a": [(0, math.nan), (1, 1.0)]}, x_label="x", y_label="y") == ""
    assert line_chart({"a": [(0, 1.0), (1, 1.0)]}, x_label="x", y_label="y").count("<path") == 1


def test_names_from_outside_are_escaped():
    drawn = line_chart({"<a>": [(0, 1.0), (1, 2.0)], "b": [(0, 1.0), (1, 2.0)]}, x_label="x & x", y_label='"y"')
    assert "<a>" not in drawn and drawn.count("&lt;a&gt;") == 2, "in the title of its line and in the legend"
    assert "x &amp; x" in drawn and 'aria-label="&#34;y&#34; by x &amp; x"' in drawn


def test_a_picture_stands_by_itself():
    shown = picture([(0, 1.0), (1, 2.0)], x_label="step", y_label="loss")
    head, _, data = shown.partition("base64,")
    assert head == "![loss by step](data:image/svg+xml;"
    svg = base64.b64decode(data.rstrip(")")).decode()
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg" width="500"') and "<style>" in svg
    assert picture([(0, math.nan)], x_label="step", y_label="loss") == ""


@pytest.mark.parametrize(("seconds", "text"), [(12, "12 s"), (192.4, "3 min 12 s"), (7500, "2 h 5 min")])
def test_durations_are_words(seconds: float, text: str):
    assert duration(seconds) == text
