from __future__ import annotations

import math

import pytest

from components.evaluate.decision import as_record, as_table
from components.evaluate.floors import parse_floors
from components.evaluate.gate import Champion, Rules, Verdict, decide, near_floors, well_formed
from model.boundary.errors import MoonflowError
from tests.components.eval_rows import eval_row
from tests.published import manifest_of

ROWS = [
    eval_row("init", "digit_string", 0.0, 0.0), eval_row("parl", "digit_string", 0.95),
    eval_row("init", "photo", 0.4), eval_row("parl", "photo", 0.35),
]  # fmt: skip


def judge(
    rows=ROWS, floors: str = "", *, champion: Champion | None = None, margin: float = 0.0, sigmas: float = 2.0,
    well_formed: tuple[float, int] = (1.0, 128), least: float = 0.9,
) -> Verdict:  # fmt: skip
    rules = Rules(parse_floors(floors), sigmas, margin, least)
    return decide(rows, rules, candidate="parl", start="init", well_formed=well_formed, champion=champion)


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


@pytest.mark.parametrize(("floor", "decision"), [(0.6, "promote"), (0.7, "hold")])
def test_a_family_that_is_run_in_several_ways_is_judged_by_the_better_one(floor: float, decision: str):
    ways = [eval_row("parl", "wide_search_single", 0.65), eval_row("parl", "wide_search_swarm", 0.2)]
    verdict = judge([*ROWS, *ways], floors=f"wide_search={floor}")
    assert verdict.decision == decision
    assert any(reason.startswith("wide_search 0.65") for reason in verdict.reasons)


WAYS = [eval_row("parl", "wide_search_single", 0.65), eval_row("parl", "wide_search_swarm", 0.6)]


@pytest.mark.parametrize(
    ("floors", "near"),
    [
        ("digit_string=0.86", ["digit_string"]),  # 0.95 with a standard error of 0.05
        ("digit_string=0.84, photo=0.46", []),
        ("wide_search=0.6", ["wide_search_single"]),  # the better one, of its own family
        ("wide_search=0.5", []),
        ("knowledge/image=0.62", ["digit_string", "photo", "wide_search_single", "wide_search_swarm"]),
        ("photo=0.3, digit_string=1", ["photo", "digit_string"]),
        ("chart=0.97", ["chart"]),  # 30 right ones of 30 do not show that 0.97 is reached
        ("chart=0.5", []),
        ("reasoning_gym=0", []),
    ],
)
def test_a_floor_is_near_what_its_interval_holds(floors: str, near: list[str]):
    rows = [*ROWS, *WAYS, *(eval_row("parl", name, value, 0.0, modality="text", n=30) for name, value in (
        ("chart", 1.0), ("reasoning_gym", 0.0),
    ))]  # fmt: skip
    assert near_floors(rows, Rules(parse_floors(floors), 2.0, 0.0, 0.9), "parl") == near


def test_holds_when_a_suite_falls_below_the_untrained_model():
    verdict = judge([*ROWS, eval_row("init", "chart", 0.5), eval_row("parl", "chart", 0.3)])
    assert verdict.decision == "hold"
    assert verdict.reasons[0] == "chart 0.30 < 0.50 untrained (± 0.14)"
    assert "no suite below the untrained model" not in verdict.reasons


def test_a_loss_against_the_champion_counts_when_the_interval_shows_more_than_the_margin():
    def against(value: float, margin: float = 0.0) -> Verdict:
        theirs = [eval_row("parl", "digit_string", value), eval_row("parl", "absent_here", 1.0)]
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
    few = [eval_row("init", "chart", 1.0, 0.0) | {"n": 2}, eval_row("parl", "chart", 0.0, 0.0) | {"n": 2}]
    many = [each | {"n": 64} for each in few]
    assert judge(few, sigmas=4.0).decision == "promote"  # two tasks show little
    assert judge(many, sigmas=4.0).decision == "hold"


def test_documents_beyond_the_context_count_neither_as_answers_nor_as_malformed():
    scores = {
        "photo": {"answered": 0.9, "n": 60, "figures": {}},
        "needle": {"answered": 0.5, "n": 40, "figures": {"beyond_context": 0.5}},
    }
    share, count = well_formed(scores, {"photo": 64, "needle": 64})
    assert count == 80 and share == pytest.approx((54 + 20) / 80)


def test_more_tasks_of_one_suite_weigh_no_more_among_well_formed_answers():
    def measured(n: int) -> tuple[float, int]:
        scores = {"photo": {"answered": 0.5, "n": n}, "chart": {"answered": 1.0, "n": 64}}
        return well_formed(
            {name: {**score, "figures": {}} for name, score in scores.items()}, {"photo": 64, "chart": 64}
        )

    assert measured(600) == measured(64) == (0.75, 128)


def test_holds_when_too_few_answers_are_well_formed():
    verdict = judge(well_formed=(0.5, 128))
    assert verdict.decision == "hold"
    assert verdict.reasons[0] == "well-formed answers 0.50 < 0.9"
    assert judge(well_formed=(0.5, 128), least=0.5).decision == "promote"


def test_the_record_holds_every_rule_with_its_evidence():
    theirs = Champion("champion moonflow 3", [eval_row("parl", "digit_string", 0.2)])
    verdict = judge(floors="photo=0.5", champion=theirs)
    candidate = manifest_of("parl", 1)
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


def test_the_imported_checkpoint_takes_the_place_of_the_untrained_model_and_the_margin_counts():
    rows = [eval_row(step.replace("init", "import_checkpoint"), *rest) for step, *rest in (
        ("init", "photo", 0.4, 0.001), ("parl", "photo", 0.35, 0.001), ("init", "chart", 0.1), ("parl", "chart", 0.2),
    )]  # fmt: skip

    def verdict(margin: float) -> Verdict:
        rules = Rules({}, 2.0, margin, 0.9)
        return decide(rows, rules, candidate="parl", start="import_checkpoint", well_formed=(1.0, 128), champion=None)

    assert verdict(0.02).decision == "hold"
    assert verdict(0.02).reasons[0] == "photo 0.35 < 0.40 imported - 0.02 (± 0.00)"
    allowed = verdict(0.06)
    assert allowed.decision == "promote" and "no suite below the imported checkpoint" in allowed.reasons
    assert {check.rule for check in allowed.checks} == {"imported", "well_formed"}


def test_a_floor_for_what_was_not_evaluated_is_refused():
    rules = Rules({"chart": 0.5}, 2.0, 0.0, 0.9)
    with pytest.raises(MoonflowError, match="'chart', which was not evaluated; choose from digit_string, photo"):
        decide(ROWS, rules, candidate="parl", start="init", well_formed=(1.0, 128), champion=None)
