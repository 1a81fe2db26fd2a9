from __future__ import annotations

import math

import pytest

from components.evaluate.decision import as_record, as_table
from components.evaluate.floors import parse_floors
from components.evaluate.gate import Champion, Rules, Verdict, decide
from components.runtime.manifest import Manifest
from model.errors import MoonflowError


def row(step: str, suite: str, value: float, stderr: float = 0.05, ability: str = "knowledge", modality: str = "image"):
    return {
        "step": step, "suite": suite, "ability": ability, "modality": modality,
        "value": value, "stderr": stderr, "n": 64,
    }  # fmt: skip


ROWS = [
    row("init", "digit_string", 0.0, 0.0), row("parl", "digit_string", 0.95),
    row("init", "photo", 0.4), row("parl", "photo", 0.35),
]  # fmt: skip


def judge(
    rows=ROWS, floors: str = "", *, champion: Champion | None = None, margin: float = 0.0, sigmas: float = 2.0,
    well_formed: tuple[float, int] = (1.0, 128), least: float = 0.9,
) -> Verdict:  # fmt: skip
    rules = Rules(parse_floors(floors), sigmas, margin, least)
    return decide(rows, rules, candidate="parl", untrained="init", well_formed=well_formed, champion=champion)


def test_promotes_when_every_floor_is_reached_and_nothing_fell_significantly():
    verdict = judge(floors="digit_string=0.9, knowledge/image=0.6")
    assert verdict.decision == "promote"
    assert verdict.reasons == [
        "digit_string 0.95 >= 0.9", "knowledge/image 0.65 >= 0.6", "well-formed answers 1.00 >= 0.9",
        "no suite below the untrained model", "no champion to compare with",
    ]  # fmt: skip


def test_holds_below_a_floor_and_says_so_first():
    verdict = judge(floors="digit_string=0.9,photo=0.5")
    assert verdict.decision == "hold"
    assert verdict.reasons[0] == "photo 0.35 < 0.5"


def test_holds_below_a_floor_of_an_ability_by_modality():
    assert judge(floors="knowledge/image=0.7").decision == "hold"  # the mean of 0.95 and 0.35 is 0.65


def test_holds_when_a_suite_falls_below_the_untrained_model():
    verdict = judge([*ROWS, row("init", "chart", 0.5), row("parl", "chart", 0.3)])
    assert verdict.decision == "hold"
    assert verdict.reasons[0] == "chart 0.30 < 0.50 untrained (± 0.14)"
    assert "no suite below the untrained model" not in verdict.reasons


def test_a_loss_against_the_champion_counts_when_the_interval_shows_more_than_the_margin():
    def against(value: float, margin: float = 0.0) -> Verdict:
        theirs = [row("parl", "digit_string", value), row("parl", "absent_here", 1.0)]
        return judge(champion=Champion("champion moonflow 3", theirs), margin=margin)

    half = 2.0 * math.hypot(0.05, 0.05)
    assert against(0.95 + half - 0.001).decision == "promote"
    held = against(0.95 + half + 0.001)
    assert held.decision == "hold"
    assert held.reasons[0].startswith("digit_string 0.95 < 1.09 champion moonflow 3")
    assert against(0.95 + half + 0.001, margin=0.01).decision == "promote"
    assert "no suite below champion moonflow 3" in against(0.9).reasons
    checks = [check for check in held.checks if check.rule == "champion"]
    assert [check.subject for check in checks] == ["digit_string"]  # the suites that both have
    low, high = checks[0].interval
    assert math.isclose(high - low, 2 * half) and high < checks[0].bound


def test_tasks_that_all_scored_alike_are_not_taken_for_certain():
    few = [row("init", "chart", 1.0, 0.0) | {"n": 2}, row("parl", "chart", 0.0, 0.0) | {"n": 2}]
    many = [each | {"n": 64} for each in few]
    assert judge(few, sigmas=4.0).decision == "promote"  # two tasks show little
    assert judge(many, sigmas=4.0).decision == "hold"


def test_holds_when_too_few_answers_are_well_formed():
    verdict = judge(well_formed=(0.5, 128))
    assert verdict.decision == "hold"
    assert verdict.reasons[0] == "well-formed answers 0.50 < 0.9"
    assert judge(well_formed=(0.5, 128), least=0.5).decision == "promote"


def test_the_record_holds_every_rule_with_its_evidence():
    theirs = Champion("champion moonflow 3", [row("parl", "digit_string", 0.2)])
    verdict = judge(floors="photo=0.5", champion=theirs)
    candidate = Manifest(uri="s3://b/run/parl/1", run_id="run", step="parl", index=1, kind="checkpoint", files=())
    about = {"model": "moonflow", "version": "3", "same_tasks": False}
    record = as_record(verdict, candidate, about)
    assert record["decision"] == "hold" and record["candidate"]["manifest_sha256"] == candidate.sha256
    rules = {(rule["rule"], rule["subject"]): rule for rule in record["rules"]}
    assert set(rules) == {
        ("floor", "photo"), ("untrained", "digit_string"), ("untrained", "photo"), ("champion", "digit_string"),
        ("well_formed", "all suites"),
    }  # fmt: skip
    floor = rules["floor", "photo"]
    assert (floor["observed"], floor["interval"], floor["bound"], floor["passed"]) == (0.35, [0.25, 0.45], 0.5, False)
    table = as_table(record).splitlines()
    assert "evaluated on other data" in table[0]
    assert table[4] == "| floor | photo | 0.350 | 0.250 to 0.450 | 0.5 | **no** |"  # what failed stands first


def test_a_floor_for_what_was_not_evaluated_is_refused():
    rules = Rules({"chart": 0.5}, 2.0, 0.0, 0.9)
    with pytest.raises(MoonflowError, match="'chart', which was not evaluated; choose from digit_string, photo"):
        decide(ROWS, rules, candidate="parl", untrained="init", well_formed=(1.0, 128), champion=None)
