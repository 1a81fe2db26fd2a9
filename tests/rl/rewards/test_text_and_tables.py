"""Texts, counts and tables against values by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.boundary.errors import MoonflowError
from model.rl import rewards
from model.rl.rewards.tables import item_f1, row_f1, table_f1
from model.rl.rewards.texts import edit_distance


def test_exact_ignores_case_spacing_and_closing_punctuation() -> None:
    assert rewards.exact("  New  Delhi.", "new delhi") == 1.0
    assert rewards.exact("New Delhi 2", "new delhi") == 0.0
    assert rewards.exact("7", 7) == 1.0


@pytest.mark.parametrize(
    ("response", "reward"),
    [("yes", 1.0), ("found:none\nno\nyes \n", 1.0), ("yes\nno", 0.0), ("**Yes.**", 1.0), ("yes!", 0.0), ("", 0.0)],
)
def test_a_verdict_is_all_of_the_last_line(response: str, reward: float) -> None:
    assert rewards.last_line(response, "yes") == reward


@pytest.mark.parametrize(
    ("response", "truth", "reward"),
    [("4", 4, 1.0), ("There are 3.", 4, 0.75), ("9", 4, 0.0), ("1", 0, 0.0), ("none", 4, 0.0), ("3 or 4", 4, 0.0)],
)
def test_number_falls_with_the_distance(response: str, truth: int, reward: float) -> None:
    assert rewards.number(response, truth) == pytest.approx(reward)


@pytest.mark.parametrize(
    ("response", "truth", "reward"),
    [("kitten", "sitting", 1 - 3 / 7), ("same", "Same", 1.0), ("", "abc", 0.0), ("", "", 1.0), ("ab", "ba", 0.0)],
)
def test_edit_is_one_minus_the_normalised_distance(response: str, truth: str, reward: float) -> None:
    assert rewards.edit(response, truth) == pytest.approx(reward)


@pytest.mark.parametrize(
    ("response", "reward"),
    [("the capital is  new\ndelhi!", 1.0), ("[NEW DELHI]", 1.0), ("New Delhis", 0.0), ("anew delhi", 0.0),
     ("New Delhi or Peru", 0.0), ("New Delhi, Peruvian", 1.0), ("", 0.0)],
)  # fmt: skip
def test_an_open_answer_has_the_right_words_and_no_wrong_ones(response: str, reward: float) -> None:
    assert rewards.says(response, {"says": "New Delhi", "not": ["Peru", "India"]}) == reward


@pytest.mark.parametrize("response", ["it is 5.", "[5]", "3, 5, 8", "5 km2", "in 5, so"])
def test_a_number_is_said_alone(response: str) -> None:
    assert rewards.says(response, {"says": "5", "not": ["15"]}) == 1.0


@pytest.mark.parametrize("response", ["5.5", "1,5", "5,000", "-5", "−5", "0.5", "55", "5 of 15"])
def test_a_number_is_not_said_by_a_longer_one(response: str) -> None:
    assert rewards.says(response, {"says": "5", "not": ["15"]}) == 0.0


def by_the_table(left: str, right: str) -> int:
    """Levenshtein's distance by the whole table of Wagner and Fischer."""
    table = np.zeros((len(left) + 1, len(right) + 1), int)
    table[:, 0], table[0] = range(len(left) + 1), range(len(right) + 1)
    for i, a in enumerate(left, start=1):
        for j, b in enumerate(right, start=1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a != b))
    return int(table[-1, -1])


@given(st.text("abc", max_size=12), st.text("abcd", max_size=90))
def test_the_edit_distance_is_that_of_the_table(left: str, right: str) -> None:
    assert edit_distance(left, right) == edit_distance(right, left) == by_the_table(left, right)


def test_table_f1_counts_pairs() -> None:
    truth = {"Peru": "Lima", "Chad": "N'Djamena"}
    assert table_f1("peru: lima\nChad: N'Djamena", truth)["score"] == 1.0
    assert table_f1("peru: lima", truth)["score"] == pytest.approx(2 * 1 / 3)
    assert table_f1("Peru: Lima\nChad: Lima\nMali: Bamako", truth)["score"] == pytest.approx(2 * 1 / 5)
    assert table_f1("no idea", truth)["score"] == 0.0


TABLE = {
    "columns": ["name", "capital", "area"],
    "rows": [["Peru", "Lima", "1285220"], ["Chad", "N'Djamena", "1284000"]],
}


@pytest.mark.parametrize(
    ("response", "items", "rows"),
    [
        ("Peru|Lima|1285220\nChad|N'Djamena|1284000", 1.0, 1.0),
        ("| Name|Capital|Area |\n|---|:-:|---|\n| chad | n'djamena | 1,284,000 |\n| PERU|Lima|1,285,220 |", 1.0, 1.0),
        # One cell of six is wrong: 5 of 6 cells found, 5 of 6 given; 1 of 2 rows.
        ("Peru|Lima|1\nChad|N'Djamena|1284000", 5 / 6, 1 / 2),
        # One row of two: precision 1, recall 1/2.
        ("Peru|Lima|1285220", 2 / 3, 2 / 3),
        # A third row is 3 cells too many: 2 * 6 / (9 + 6), 2 * 2 / (3 + 2).
        ("Peru|Lima|1285220\nChad|N'Djamena|1284000\nMali|Bamako|1", 0.8, 0.8),
        # Of two rows with one key the first counts.
        ("Peru|Lima|1\nPeru|Lima|1285220\nChad|N'Djamena|1284000", 5 / 6, 1 / 2),
        # A cell is missing; a row has too many cells, which are no cells of the table.
        ("Peru|Lima\nChad|N'Djamena|1284000", 5 / 6, 1 / 2),
        ("Peru|Lima|1285220|x\nChad|N'Djamena|1284000", 1 / 2, 1 / 2),
        ("Peru: Lima", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)  # fmt: skip
def test_item_and_row_f1_as_wide_search_scores(response: str, items: float, rows: float) -> None:
    assert item_f1(response, TABLE)["score"] == pytest.approx(items)
    assert row_f1(response, TABLE)["score"] == pytest.approx(rows)


def test_an_unknown_reward_is_told() -> None:
    with pytest.raises(MoonflowError, match="unknown reward 'bleu'.*exact, .*, math, reasoning_gym, tests"):
        rewards.score("bleu", "a", "a")
