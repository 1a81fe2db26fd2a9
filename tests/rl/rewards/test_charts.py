"""Chart values against values by hand."""

from __future__ import annotations

import pytest

from model.rl.rewards.charts import read_value, values

BARS = {"North": 40, "South": 200.0}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42), ("-4.5", -4.5), (".5", 0.5), ("about 1,234,567.5 km", 1234567.5), ("12%", 12), ("$3e2", 300),
        ("+7.", 7), ("12,34", None), ("3 or 4", None), ("3-4", None), ("none", None), ("", None), ("1e999", None),
        ("9" * 400, None), ("٤٢", 42), ("²", None),
    ],
)  # fmt: skip
def test_a_value_is_the_only_number_of_a_text(text: str, value: float | None) -> None:
    assert read_value(text) == value


@pytest.mark.parametrize(
    ("response", "truth", "reward"),
    [
        ("100", 100, 1.0), ("95", 100, 1.0), ("105 units", 100, 1.0), ("94.9", 100, 0.0), ("105.1", 100, 0.0),
        ("-95", -100, 1.0), ("0", 0, 1.0), ("0.001", 0, 0.0), ("100 or 90", 100, 0.0), ("", 100, 0.0),
        ("110", {"values": 100, "tolerance": 0.1}, 1.0), ("100.1", {"values": 100, "tolerance": 0}, 0.0),
    ],
)  # fmt: skip
def test_a_single_value_is_right_within_the_tolerance(response: str, truth: object, reward: float) -> None:
    assert values(response, truth) == reward


def test_several_values_are_an_f1_over_pairs() -> None:
    assert values("north: 41\nSouth: 200", BARS) == {"score": 1.0, "precision": 1.0, "recall": 1.0}
    assert values("North: 40", BARS) == pytest.approx({"score": 2 / 3, "precision": 1.0, "recall": 0.5})
    assert values("The values:\nNorth: 50\nSouth: 200", BARS)["score"] == pytest.approx(0.5)
    # Two guesses for one bar: one pair of three is too many.
    assert values("North: 40\nNorth: 90\nSouth: 200", BARS)["score"] == pytest.approx(2 * 2 / 5)
    assert values("40 and 200", BARS)["score"] == 0.0
