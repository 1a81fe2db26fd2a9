"""No answer makes a reward raise, hang, or leave 0 to 1."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.boundary.errors import MoonflowError
from model.rl import rewards
from model.rl.task_check import check_task
from tests.samples import make_sample

SQUARE = [10, 10, 60, 10, 60, 60, 10, 60]
TABLE = {"columns": ["name", "capital"], "rows": [["Peru", "Lima"], ["Chad", "N'Djamena"]]}
ANSWERS = {
    "exact": "7", "last_line": "7", "number": 7, "edit": "seven", "box": [0, 0, 10, 10], "points": [[5, 5], [50, 50]],
    "polygon": SQUARE,
    "values": {"a": 1.5, "b": -2}, "table_f1": {"Peru": "Lima"}, "item_f1": TABLE, "row_f1": TABLE,
    "says": {"says": "7", "not": ["8"]},
}  # fmt: skip
NASTY = st.sampled_from(
    ["9" * 200, "9" * 5000, "-" + "9" * 5000, "²", "१", "٤", "１", "-", "NaN", "Infinity", "1e999", "0", " ", ":", "\n",
     "a" * 50, "\x00", "\ufffd", "\ud800", "0.0000001", "[[", "(((", "a: 1", "b: -2%", ";", "3 4 5 6 7 8", ",", "|"]
)  # fmt: skip
LONG = {
    "a megabyte": "1 " * 500_000,
    "digits": "9" * 65_000,
    "boxes": "0 0 9 9 " * 8_000,
    "boxes that may be matched": "0 0 9 9 " * 512,
    "corners": " ".join(f"{n * 7 % 101} {n * 13 % 97}.5" for n in range(512)),
    "polygons": "0 0 99 50 0 99\n" * 170,
    "polygons beyond the picture": "-1000000000 -1000000000 1000000000 0 0 1000000000\n" * 170,
    "one line": "0 0 5 5 0 5;" * 5_000,
    "commas": "1," * 30_000,
    "figures with commas": "a: " + "1,111" * 13_000,
    "pairs": "a: 1\n" * 13_000,
    "rows": "Peru|Lima\n" * 6_000,
    "columns": "Peru|" * 13_000,
    "brackets": "[" * 65_000,
    "letters": "seven " * 10_000,
}


@pytest.mark.parametrize("name", rewards.REWARDS)
@given(st.lists(NASTY | st.text(max_size=5), max_size=9).map("".join))
def test_any_response_earns_between_nothing_and_all(name: str, response: str) -> None:
    verdict = rewards.judge(name, response, ANSWERS[name])
    assert all(0.0 <= value <= 1.0 for value in verdict.values())


@pytest.mark.parametrize("name", rewards.REWARDS)
def test_long_responses_take_little_time(name: str) -> None:
    for kind, response in LONG.items():
        began = time.process_time()
        assert 0.0 <= rewards.score(name, response, ANSWERS[name]) <= 1.0
        assert time.process_time() - began < 1.0, kind


@pytest.mark.parametrize("digits", [200, 400, 5000])
def test_a_number_past_every_float_is_no_count_and_no_place(digits: int) -> None:
    huge = "9" * digits
    assert rewards.score("number", huge, 4) == rewards.score("number", f"-{huge}", 4) == 0.0
    for response in (f"0 0 {huge} {huge}", f"0 5 {huge} 0", f"-{huge} 0 0 {huge}"):
        assert rewards.score("box", response, "0 0 10 10") == rewards.score("points", response, "0 0") == 0.0
    assert rewards.score("values", huge, 4) == 0.0
    assert rewards.score("number", huge[:200], int(huge[:200])) == 1.0


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("number", "many"), ("box", "here"), ("box", ""), ("box", [1, 2, 3]), ("box", [[1, 2, 3, math.nan]]),
        ("box", None), ("points", [[1, 2, 3]]), ("points", {"points": [1, 2], "sigma": 0}), ("points", {"sigma": 1}),
        ("points", {"points": [1, 2], "radius": 3}), ("polygon", [1, 2, 3, 4]), ("polygon", []),
        ("polygon", [5, 5, 5, 5, 5, 5]), ("polygon", {"polygons": SQUARE, "size": [10**6, 10**6]}),
        ("polygon", {"polygons": SQUARE, "size": [100]}), ("values", "about 3"), ("values", {"a": None}),
        ("values", {"values": 3, "tolerance": 2}), ("values", math.inf), ("item_f1", {"rows": []}), ("math", ""),
        ("math", [1]), ("math", math.nan), ("math", True), ("math", "x" * 2001), ("reasoning_gym", {"dataset": "acre"}),
        ("reasoning_gym", {"dataset": "acre", "entry": {"answer": "yes"}}), ("reasoning_gym", "acre"),
    ],
)  # fmt: skip
def test_a_true_answer_of_another_form_is_told_before_it_is_used(name: str, answer: object) -> None:
    task = make_sample(messages=[{"role": "user", "content": "?"}], answer=answer, reward=name)
    with pytest.raises(MoonflowError, match=f"sample k: reward '{name}' cannot judge by its answer"):
        check_task(task)
