from __future__ import annotations

import pytest

from components.evaluate.gate import decide, parse_floors
from model.errors import MoonflowError


def row(step: str, suite: str, value: float, stderr: float = 0.05, ability: str = "knowledge", modality: str = "image"):
    return {"step": step, "suite": suite, "ability": ability, "modality": modality, "value": value, "stderr": stderr}


ROWS = [
    row("init", "digit_string", 0.0, 0.0), row("parl", "digit_string", 0.95),
    row("init", "photo", 0.4), row("parl", "photo", 0.35),
]  # fmt: skip


def judge(rows, floors: str):
    return decide(rows, parse_floors(floors), candidate="parl", untrained="init", sigmas=2.0)


def test_promotes_when_every_floor_is_reached_and_nothing_fell_significantly():
    verdict = judge(ROWS, "digit_string=0.9, knowledge/image=0.6")
    assert verdict.decision == "promote"
    assert verdict.reasons[0] == "digit_string 0.95 >= 0.9"


def test_holds_below_a_floor_and_says_so_first():
    verdict = judge(ROWS, "digit_string=0.9,photo=0.5")
    assert verdict.decision == "hold"
    assert verdict.reasons[0] == "photo 0.35 < 0.5"


def test_holds_below_a_floor_of_an_ability_by_modality():
    assert judge(ROWS, "knowledge/image=0.7").decision == "hold"  # the mean of 0.95 and 0.35 is 0.65


def test_holds_when_a_suite_falls_below_the_untrained_model():
    verdict = judge([*ROWS, row("init", "chart", 0.5), row("parl", "chart", 0.3)], "digit_string=0.9")
    assert verdict.decision == "hold"
    assert verdict.reasons[0] == "chart 0.30 < 0.50 untrained"


@pytest.mark.parametrize("text", ["digit_string", "digit_string=high", "digit_string:0.5"])
def test_a_floor_that_is_no_number_is_refused(text: str):
    with pytest.raises(MoonflowError, match="write suite=value"):
        parse_floors(text)


def test_a_floor_for_what_was_not_evaluated_is_refused():
    with pytest.raises(MoonflowError, match="'digit_strings'.*choose from digit_string, photo"):
        judge(ROWS, "digit_strings=0.5")
