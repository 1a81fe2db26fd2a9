"""The comparison of the SFT ablation's arms, on figures whose answer is known."""

from __future__ import annotations

import math
from typing import Any

import pytest

from components.ablation import ablations
from components.ablation.sft.arms import cells
from components.ablation.sft.claims import claims
from components.ablation.sft.comparison import compare, metrics, rows_of
from components.ablation.sft.page import render
from components.ablation.sft.table import markdown, sentences, tables
from tests.components.finish.page import Page

KINDS = {"crop": 3, "read_bar": 1, "new_objects": 2}  # tasks
SUCCESS = {"before": [0.1], "text": [0.4, 0.35, 0.45], "narrow": [0.3, 0.2, 0.25]}


def score(value: float, calls: float, n: int, **more: Any) -> dict[str, Any]:
    return {"value": value, "tool_calls": calls, "n": n, **more}


def result(arm: str, seed: int, worn: float = 0.0) -> dict[str, Any]:
    value = SUCCESS[arm][seed]
    kinds = {name: score(value if name != "new_objects" else value / 2, 0.5, n) for name, n in KINDS.items()}
    whole = sum(each["value"] * each["n"] for each in kinds.values()) / 6
    return {
        "name": "sft", "arm": arm, "seed": seed, "tokens": 0 if arm == "before" else 1_000 + seed,
        "untrained": ["new_objects"],
        "scores": {
            "image_program_image": score(whole, 0.5, 6, kinds=kinds),
            "array_tool_image": score(value, 0.75, 8, kinds={}),
            "digit_string": score(0.9 - worn, 0.0, 8, kinds={}),
        },
    }  # fmt: skip


CELLS = [(arm, seed) for arm, values in SUCCESS.items() for seed in range(len(values))]
RESULTS = [result(arm, seed, 0.04 * (arm == "narrow")) for arm, seed in CELLS]


def test_groups_of_kinds_are_means_over_tasks() -> None:
    rows = rows_of(result("text", 0))
    assert rows["trained kinds"] == {"success": pytest.approx(40.0), "tool_calls": pytest.approx(50.0), "n": 4}
    assert rows["untrained kinds"]["success"] == pytest.approx(20.0) and rows["untrained kinds"]["n"] == 2
    assert rows["image_program_image"]["success"] == pytest.approx((40 * 4 + 20 * 2) / 6)
    assert set(rows) >= {"kind/crop", "kind/read_bar", "kind/new_objects", "array_tool_image", "digit_string"}


def test_gains_are_taken_seed_by_seed_from_the_one_checkpoint_before() -> None:
    found = compare(RESULTS, {}, [])
    gain = found["gains"]["text"]["array_tool_image"]["success"]
    assert gain["seeds"] == pytest.approx({"0": 30.0, "1": 25.0, "2": 35.0}) and gain["mean"] == pytest.approx(30.0)
    assert gain["half"] == pytest.approx(4.3027 * 5 / math.sqrt(3), rel=1e-4)
    assert set(found["gains"]) == {"text", "narrow"}
    assert found["differences"]["array_tool_image"]["success"]["seeds"] == pytest.approx({"0": 10, "1": 15, "2": 20})
    score = found["arms"]["narrow"]["rows"]["array_tool_image"]["success"]
    assert score == {"mean": pytest.approx(25.0), "sd": pytest.approx(5.0), "n": 3}


def verdicts(results: list[dict[str, Any]]) -> list[tuple[str, bool | None]]:
    """The claims in short: their suite or subject, and whether they hold."""
    subjects = ("image_program_image", "array_tool_image", "no trajectory", "wear", "generalises")
    found = []
    for claim in claims(compare(results, {}, [])):
        (subject,) = (s for s in subjects if s in claim.text.replace("lose at most", "wear"))
        found.append((subject, claim.holds))
    return found


def test_each_claim_is_judged_by_its_rule() -> None:
    """Image programs gain 20.8 to 29.2 points in text, array tools 25 and more; the others are as the figures say."""
    assert verdicts(RESULTS) == [
        ("image_program_image", True), ("array_tool_image", True), ("no trajectory", True), ("wear", True),
        ("generalises", True),
    ]  # fmt: skip


def test_one_seed_below_twenty_points_is_enough_to_refute() -> None:
    weak = [{**each, "scores": {**each["scores"], "array_tool_image": score(0.29, 0.5, 8, kinds={})}}
            if (each["arm"], each["seed"]) == ("text", 1) else each for each in RESULTS]  # fmt: skip
    assert ("array_tool_image", False) in verdicts(weak)
    (claim,) = (c for c in claims(compare(weak, {}, [])) if "array_tool_image" in c.text)
    assert "+19.0" in claim.figures and "does not hold" in str(claim)


def test_vision_that_loses_more_than_three_points_is_worn() -> None:
    for worn, holds in ((0.029, True), (0.031, False), (-0.2, True)):
        results = [result("before", 0), *(result("text", seed, worn) for seed in range(3))]
        assert ("wear", holds) in verdicts(results)


def test_one_seed_gives_no_verdict() -> None:
    one = [result("before", 0), result("text", 0), result("narrow", 0)]
    found = claims(compare(one, {}, cells(range(1))))
    assert {claim.verdict for claim in found} == {"no verdict from 1 seed, it takes 3 or more"}
    assert all(claim.met is not None for claim in found[:-1]) and found[-1].met is None, "one seed has no interval"
    assert "success +25.0: +25.0" in str(found[0]), "its figures are shown"


def test_a_gain_of_each_seed_is_shown_by_all_seeds() -> None:
    first = [claim.holds for claim in claims(compare(RESULTS, {}, cells(range(4))))]
    assert first == [None, None, None, True, True], "text-3 has no result"


def test_what_has_not_ended_has_no_verdict_and_is_named() -> None:
    without = [each for each in RESULTS if each["arm"] != "before"]
    found = ablations.compare(without, {}, cells(range(3)))
    assert ablations.of(found).sentences(found)[0] == "no result: before-0"
    assert {claim.verdict for claim in claims(found)[:-1]} == {"no verdict from 0 seeds, it takes 3 or more"}
    assert all(claim.figures.endswith("no result: before-0") for claim in claims(found))
    assert {holds for _, holds in verdicts([result("before", 0)])} == {None}
    alone = [result("text", 0), result("narrow", 0)]
    assert compare(alone, {}, [])["gains"] == {}
    apart = compare([result("text", 0), result("narrow", 1)], {}, [])
    assert apart["differences"] == {}
    for some in (alone, [result("before", 0)], [result("narrow", 2)]):
        found = ablations.compare(some, {}, [])
        assert found["name"] == "sft" and "no verdict" in ablations.of(found).markdown(found)
        Page(render(found, {}, {"run_id": "x"}))


def test_the_tables_have_a_column_for_every_arm_and_a_row_for_every_kind() -> None:
    found = compare(RESULTS, {}, [])
    tool_use, kinds, vision = tables(found)
    assert [row[0] for row in kinds.rows] == ["crop", "read_bar", "new_objects (untrained)"]
    assert [row[1] for row in kinds.rows] == ["3", "1", "2"]
    assert all(len(row) == len(table.head) for table in (tool_use, kinds, vision) for row in table.rows)
    assert vision.rows == [["digit strings", "digit_string", "90.0", "90.0 ± 0.0", "86.0 ± 0.0"]]
    text = markdown(found)
    assert "| crop | 3 | 10.0 | 50.0 | 40.0 ± 5.0 | 50.0 ± 0.0 | 25.0 ± 5.0 | 50.0 ± 0.0 |" in text
    assert "| image_program_image: untrained kinds | 5.0 | 50.0 |" in text
    assert "text: text-only trajectories; 1,000 to 1,002 tokens; seeds 0, 1, 2" in sentences(found)


def test_the_page_is_whole_and_loads_nothing() -> None:
    page = Page(render(compare(RESULTS, {}, []), {}, {"run_id": "<sft>", "error": "text-2: out of <memory>"}))
    text = " ".join(page.texts)
    assert "<sft>" in text and "out of <memory>" in text and "new_objects (untrained)" in text and "holds" in text
    assert not page.addresses


def test_metrics_name_measure_arm_and_row() -> None:
    found = metrics(compare(RESULTS, {}, []))
    assert found["success/text/array_tool_image"] == pytest.approx(40.0)
    assert found["tool_calls/before/untrained_kinds"] == pytest.approx(50.0)
    assert found["gain/success/narrow/kind/crop"] == pytest.approx(15.0)
    assert all(" " not in name for name in found)
