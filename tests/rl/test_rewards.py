from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.boundary.errors import MoonflowError
from model.rl import rewards


def test_exact_ignores_case_spacing_and_closing_punctuation() -> None:
    assert rewards.exact("  New  Delhi.", "new delhi") == 1.0
    assert rewards.exact("New Delhi 2", "new delhi") == 0.0
    assert rewards.exact("7", 7) == 1.0


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


def test_box_is_the_iou() -> None:
    # 10x10 and 10x10, shifted by 5: shared 50, union 150.
    assert rewards.box("5 0 15 10", "0 0 10 10") == pytest.approx(1 / 3)
    assert rewards.box("0 0 10 10", [0, 0, 10, 10]) == 1.0
    assert rewards.box("20 20 30 30", "0 0 10 10") == 0.0
    assert rewards.box("10 10 0 0", "0 0 10 10") == 0.0
    assert rewards.box("1 2 3", "0 0 10 10") == 0.0


def test_grounding_f1_matches_for_the_largest_sum() -> None:
    a, b = [0, 0, 10, 10], [5, 0, 15, 10]
    assert rewards.grounding_f1([b, a], [a, b]) == pytest.approx(1.0)
    # one of two boxes found exactly: 2 * 1 / (1 + 2)
    assert rewards.grounding_f1([a], [a, [50, 50, 60, 60]]) == pytest.approx(2 / 3)
    # Greedy would take (a, a) = 1 and leave (c, b) = 0; that is also the best sum here: 2 * 1 / 4.
    assert rewards.grounding_f1([a, [90, 90, 99, 99]], [a, b]) == pytest.approx(0.5)
    # p0 overlaps t0 by 1/3 and t1 fully; p1 overlaps only t1 by 1/3: full for p0 wins over 1/3 + 1/3.
    assert rewards.grounding_f1([b, [10, 0, 20, 10]], [a, b]) == pytest.approx(2 * 1.0 / 4)
    assert rewards.grounding_f1([], [a]) == 0.0
    assert rewards.grounding_f1([], []) == 1.0


def test_table_f1_counts_pairs() -> None:
    truth = {"Peru": "Lima", "Chad": "N'Djamena"}
    assert rewards.table_f1("peru: lima\nChad: N'Djamena", truth) == 1.0
    assert rewards.table_f1("peru: lima", truth) == pytest.approx(2 * 1 / 3)
    assert rewards.table_f1("Peru: Lima\nChad: Lima\nMali: Bamako", truth) == pytest.approx(2 * 1 / 5)
    assert rewards.table_f1("no idea", truth) == 0.0


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
    assert rewards.item_f1(response, TABLE) == pytest.approx(items)
    assert rewards.row_f1(response, TABLE) == pytest.approx(rows)


def test_an_unknown_reward_is_told() -> None:
    with pytest.raises(MoonflowError, match="unknown reward 'bleu'.*exact, .*, tests"):
        rewards.score("bleu", "a", "a")


NASTY = st.sampled_from(
    ["9" * 200, "9" * 5000, "-" + "9" * 5000, "²", "१", "٤", "１", "-", "NaN", "Infinity", "1e999", "0", " ", ":", "\n",
     "a" * 50, "\x00", "\ufffd"]
)  # fmt: skip
ANSWERS = {"exact": "7", "number": 7, "edit": "seven", "box": [0, 0, 10, 10], "table_f1": {"Peru": "Lima"},
           "item_f1": TABLE, "row_f1": TABLE, "says": {"says": "7", "not": ["8"]}}  # fmt: skip


@pytest.mark.parametrize("name", rewards.REWARDS)
@given(st.lists(NASTY | st.text(max_size=5), max_size=9).map("".join))
def test_any_response_earns_between_nothing_and_all(name: str, response: str) -> None:
    assert 0.0 <= rewards.score(name, response, ANSWERS[name]) <= 1.0


@pytest.mark.parametrize("digits", [200, 400, 5000])
def test_a_number_past_every_float_is_no_count_and_no_box(digits: int) -> None:
    huge = "9" * digits
    assert rewards.number(huge, 4) == rewards.number(f"-{huge}", 4) == 0.0
    for response in (f"0 0 {huge} {huge}", f"0 5 {huge} 0", f"-{huge} 0 0 {huge}"):
        assert rewards.box(response, "0 0 10 10") == 0.0
    assert rewards.number(huge[:200], int(huge[:200])) == 1.0
