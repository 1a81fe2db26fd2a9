"""The comparison of the RL ablation's arms, on figures whose answer is known."""

from __future__ import annotations

import math
from typing import Any

import pytest

from components.ablation import ablations
from components.ablation.rl.arms import ARMS, IMAGES, PAPER, SUITES, TEXTS, cells
from components.ablation.rl.claims import claims
from components.ablation.rl.comparison import OTHER, TEXT, TRAINED, compare, metrics, rows_of
from components.rl_arm.config import Config
from model.boundary.errors import MoonflowError
from model.data.families import FAMILIES
from model.evals.suites import SUITES as HELD_OUT
from tests.components.finish.page import Page

FAMILIES_OF_RL = ["array_tool_image", "photo"]
# arm -> of each seed: the score of the families of visual RL, of other suites of images, of text
FIGURES = {
    "before": [(0.50, 0.90, 0.70), (0.52, 0.90, 0.70)],
    "visual": [(0.70, 0.88, 0.73), (0.66, 0.90, 0.72)],
    "rft": [(0.62, 0.90, 0.71), (0.60, 0.90, 0.71)],
    "more_sft": [(0.50, 0.89, 0.70), (0.49, 0.90, 0.71)],
    "joint": [(0.72, 0.92, 0.75), (0.71, 0.92, 0.76)],
}


def result(arm: str, seed: int, **scores: float) -> dict[str, Any]:
    trained, other, text = FIGURES[arm][seed]
    values = {name: text if name in TEXTS else trained if name in FAMILIES_OF_RL else other for name in SUITES} | scores
    return {
        "name": "rl", "arm": arm, "seed": seed, "tokens": 1_000 + seed, "visual_families": FAMILIES_OF_RL,
        "scores": {name: {"value": value, "stderr": 0.015, "n": 640} for name, value in values.items()},
    }  # fmt: skip


RESULTS = [result(arm, seed) for arm, values in FIGURES.items() for seed in range(len(values))]
ROUNDS = [{"step": t + 1, "reward/mean": t / 40, "tokens/response": 9.0} for t in range(40)]
EVENTS = {f"rl_arm-{arm}-{seed}": ROUNDS for arm in ("visual", "joint") for seed in (0, 1)}


def changed(arm: str, **scores: float) -> list[dict[str, Any]]:
    """The results, of which one arm's first seed has other scores."""
    return [result(arm, 0, **scores) if (each["arm"], each["seed"]) == (arm, 0) else each for each in RESULTS]


def verdicts(results: list[dict[str, Any]]) -> list[bool | None]:
    """Whether each claim's rule is met, however few seeds there are."""
    return [claim.met for claim in claims(compare(results, EVENTS, []))]


def test_rows_are_suites_and_means_over_them() -> None:
    rows = rows_of(result("visual", 0, photo=0.8, needle=0.23))
    assert rows["photo"] == pytest.approx(80.0) and rows[TRAINED] == pytest.approx(75.0)
    assert rows[OTHER] == pytest.approx(88.0)
    assert rows[TEXT] == pytest.approx((4 * 73 + 23) / 5)
    assert rows["agentic"] == pytest.approx(73.0) and rows["coding"] == pytest.approx((70 + 73) / 2)
    assert (rows["coding, image"], rows["coding, text"]) == pytest.approx((70.0, 73.0)) and "agentic, image" not in rows


def test_arms_are_compared_seed_by_seed_with_the_arm_that_they_are_to_beat() -> None:
    found = compare(RESULTS, EVENTS, [])
    assert set(found["gains"]) == {"visual", "rft", "joint"}
    gain = found["gains"]["visual"][TRAINED]
    assert gain["seeds"] == pytest.approx({"0": 20.0, "1": 14.0}) and gain["mean"] == pytest.approx(17.0)
    assert gain["half"] == pytest.approx(12.7062 * math.sqrt(18) / math.sqrt(2), rel=1e-4)
    assert found["gains"]["rft"][TRAINED]["seeds"] == pytest.approx({"0": 12.0, "1": 11.0}), "against more SFT"
    assert found["gains"]["joint"][TEXT]["seeds"] == pytest.approx({"0": 4.0, "1": 5.0}), "against RFT"
    assert found["rewards"]["visual"]["1"] == pytest.approx([4.5 / 40, 34.5 / 40]), "the first and the last ten rounds"
    assert found["suites"]["photo"] == {"n": 640, "stderr": pytest.approx(1.5)}
    figures = metrics(found)
    assert figures["gain/visual/images/families_of_visual_RL"] == pytest.approx(17.0)
    assert figures["success/more_sft/fact_qa"] == pytest.approx(70.5) and not any(" " in name for name in figures)


def test_each_claim_is_judged_by_its_rule() -> None:
    """With two seeds a 95% interval is 12.7 standard errors wide: gains of 3 and 2 points are within it."""
    vision, text, *paper, tuning = verdicts(RESULTS)[: 3 + len(PAPER)]
    assert (vision, text, paper) == (True, False, [False] * len(PAPER))
    assert tuning is True, "12 and 11 points"
    assert verdicts(RESULTS)[-4:] == [True, True, True, False], "the agentic suite gains 4 and 5 points"
    assert verdicts(changed("visual", array_tool_image=0.48))[0] is False, "9 points in one of two seeds"
    alike = dict.fromkeys(TEXTS, 0.72)
    assert verdicts(changed("visual", **alike))[1 : 2 + len(PAPER)] == [True] * (1 + len(PAPER))
    assert verdicts(changed("rft", array_tool_image=0.4, photo=0.4))[2 + len(PAPER)] is False


def test_what_has_not_ended_has_no_verdict_and_is_named() -> None:
    assert set(verdicts(RESULTS[:2])) == {None}
    for figures in (RESULTS, changed("visual", photo=0.3)):
        for seeds in ((0,), (0, 1)):
            some = [each for each in figures if each["seed"] in seeds]
            assert {claim.holds for claim in claims(compare(some, EVENTS, []))} == {None}, "so few seeds show nothing"
    third = [{**each, "seed": 2} for each in RESULTS if each["seed"]]
    assert claims(compare([*RESULTS, *third], EVENTS, []))[0].verdict == "holds"
    some = [each for each in RESULTS if (each["arm"], each["seed"]) != ("rft", 1)]
    found = compare(some, {}, cells(range(2)))
    assert found["no_result"] == ["rft-1"]
    assert all(claim.figures.endswith("no result: rft-1") for claim in claims(found))


def test_a_gain_of_each_seed_is_shown_by_all_seeds_and_refuted_by_one() -> None:
    three = cells(range(3))
    assert claims(compare(RESULTS, EVENTS, three))[0].met is None, "the third seed has no result"
    assert claims(compare(changed("visual", array_tool_image=0.48), EVENTS, three))[0].met is False
    assert claims(compare(RESULTS, EVENTS, [*cells(range(2)), "joint-2"]))[0].met is True, "it takes no joint RL"


def test_rft_is_compared_at_equal_tokens_only() -> None:
    for tokens, met in ((1_040, True), (1_060, None), (900, None)):
        other = [{**each, "tokens": tokens} if each["arm"] == "rft" and not each["seed"] else each for each in RESULTS]
        (claim,) = (claim for claim in claims(compare(other, EVENTS, [])) if claim.text.startswith("RFT"))
        assert claim.met is met and ("not as many" in claim.figures) == (met is None), claim


def test_joint_rl_is_told_by_ability_over_text_and_images() -> None:
    found = ablations.compare(RESULTS, EVENTS, [])
    coding = next(claim for claim in claims(found) if claim.text.endswith("lifts coding"))
    assert "; image +10.5" in coding.figures and "; text +4.5" in coding.figures
    assert "| coding, text | +2.5" in ablations.of(found).markdown(found)


def test_without_successes_there_is_no_verdict_on_rft() -> None:
    none = [{**each, "tokens": 0} if each["arm"] == "rft" else each for each in RESULTS]
    (claim,) = (claim for claim in claims(compare(none, EVENTS, [])) if claim.text.startswith("RFT"))
    assert claim.met is None and "no success to learn from" in claim.figures


def test_the_page_and_the_tables_are_whole() -> None:
    for results, events in ((RESULTS, EVENTS), (RESULTS[:1], {}), (RESULTS[3:4], {})):
        found = ablations.compare(results, events, [])
        of = ablations.of(found)
        page = Page(of.render(found, events, {"run_id": "<rl>", "error": "visual-2: out of <memory>"}))
        text = " ".join(page.texts)
        assert "<rl>" in text and "out of <memory>" in text and not page.addresses
        assert "no verdict" in of.markdown(found) or results is RESULTS
        assert of.printed(found).rows and of.sentences(found)
    found = ablations.compare(RESULTS, EVENTS, [])
    assert ablations.of(found).render(found, EVENTS, {}).count("<svg") == 4
    text = ablations.of(found).markdown(found)
    assert "| fact_qa | knowledge, text | 640 | 1.5 | 70.0 ± 0.0 | 72.5 ± 0.7 |" in text
    assert "| fact_qa | +2.5 ± 6.4 | +0.5 ± 6.4 | +4.5 ± 6.4 | +1.7 (MMLU-Pro) |" in text


def test_arms_come_after_those_that_they_need_and_suites_are_what_they_are_said_to_be() -> None:
    done = set[str]()
    for name, arm in ARMS.items():
        assert set(arm.needs) <= done
        done.add(name)
    assert Config.cells([4]) == cells([4]) == [f"{arm}-4" for arm in ARMS] and set(Config.needs) == set(ARMS)
    assert set(SUITES) <= set(HELD_OUT) and set(PAPER) <= set(TEXTS)
    for name, suite in SUITES.items():
        sample = FAMILIES[HELD_OUT[name].family].sample(0, "eval", 0)
        assert (sample.ability, sample.modality) == (suite.ability, suite.modality)
    for families, told in (("photo,needle", "'needle' is no family that is measured"), ("photo,photo", "once")):
        with pytest.raises(MoonflowError, match=told):
            Config.parse({"visual_families": families}, "here")
    assert set(Config().visual_families.split(",")) < set(IMAGES)
