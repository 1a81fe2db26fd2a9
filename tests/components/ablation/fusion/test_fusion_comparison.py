"""The comparison of the arms, on figures whose answer is known."""

from __future__ import annotations

import math
from typing import Any

import pytest

from components.ablation.curves import curves
from components.ablation.fusion.arms import ARMS, COLUMNS, cells
from components.ablation.fusion.comparison import STEP, compare
from components.ablation.fusion.page import against_early, render
from components.ablation.fusion.table import markdown, sentences
from components.ablation.spread import half_width
from tests.components.finish.page import Page

SCORES = {"early": (0.5, 0.6, 0.7), "mid": (0.4, 0.5, 0.6), "late": (0.5, 0.4, 0.9)}


def result(arm: str, seed: int) -> dict[str, Any]:
    measures = {"score": SCORES[arm][seed], "loss": 2 - SCORES[arm][seed], "chance": 0.25}
    return {
        "arm": arm, "seed": seed, "tokens": {"vision": 1_000 + seed, "text": 9_000},
        "bits_per_byte": {"stdlib_code": 3.0}, "columns": {column.name: measures for column in COLUMNS},
    }  # fmt: skip


def events() -> dict[str, list[dict[str, float]]]:
    """Text loss falls by 0.01 a step; mid's jumps by 0.3 at step 60 and is back 30 steps later."""
    rows: dict[str, list[dict[str, float]]] = {}
    for arm in ARMS:
        for seed in range(3):
            losses = {step: 3 - step / 100 for step in range(0, 101, 10)}
            if arm == "mid":
                losses |= {60: 2.8, 70: 2.6, 80: 2.55, 90: 2.45, 100: 2.4}
            rows[f"fusion_arm-{arm}-{seed}"] = [
                {"step": step, "held_out/text": loss, "held_out/vision": 2.0} for step, loss in losses.items()
            ]
    return rows


RESULTS = [result(arm, seed) for arm in ARMS for seed in range(3)]


def test_means_and_spread_over_seeds() -> None:
    found = compare(RESULTS, events(), [])
    score = found["arms"]["early"]["columns"]["OCR"]["score"]
    assert score == {"mean": pytest.approx(60.0), "sd": pytest.approx(10.0), "n": 3}
    assert found["arms"]["late"]["columns"]["OCR"]["loss"]["mean"] == pytest.approx(1.4)
    assert found["arms"]["mid"]["columns"]["code"]["paper"] == 24.0
    assert found["arms"]["early"]["tokens"]["vision"] == [1000, 1001, 1002]


def test_differences_are_taken_seed_by_seed() -> None:
    found = compare(RESULTS, events(), [])["differences"]
    # 0.1 in every seed: no doubt. Against late 0, 0.2 and -0.2: nothing is known, though the seeds differ as much.
    assert found["mid"]["OCR"]["score"] == {"mean": pytest.approx(10.0), "half": pytest.approx(0.0, abs=1e-9), "n": 3}
    assert found["late"]["OCR"]["score"]["mean"] == pytest.approx(0.0)
    assert found["late"]["OCR"]["score"]["half"] == pytest.approx(4.3027 * 20 / math.sqrt(3), rel=1e-4)
    lines = sentences(compare(RESULTS, events(), []))
    every = ", ".join(column.name for column in COLUMNS)
    assert f"early against mid, score of {every}: early is better" in lines
    assert f"early against mid, loss of {every}: early is better" in lines
    assert f"early against late, score of {every}: within noise" in lines


def test_half_width_is_students() -> None:
    assert half_width([1.0, 3.0]) == pytest.approx(12.7062 * math.sqrt(2) / math.sqrt(2), rel=1e-4)
    assert half_width([1.0]) is None


def test_a_dip_and_its_end_are_found() -> None:
    dips = compare(RESULTS, events(), [])["dips"]
    assert set(dips) == {"mid", "late"}
    # Before vision (step 50) 2.5; worst 2.8 at step 60; at or below 2.5 again at step 90 of 100.
    assert dips["mid"][0] == {
        "seed": 0, "before": pytest.approx(2.5), "rise": pytest.approx(0.3), "recovered": 0.9, "final": 2.4,
    }  # fmt: skip
    assert dips["late"][0]["rise"] == pytest.approx(-0.1) and dips["late"][0]["recovered"] == 0.8


def test_a_dip_shows_against_the_early_arm() -> None:
    against = against_early(curves(events(), STEP, ARMS, "held_out/text"))
    assert list(against) == list(ARMS)
    assert {value for name in ("early", "late") for _, value in against[name]} == {0.0}
    assert dict(against["mid"])[50] == 0.0
    assert [round(dict(against["mid"])[step], 6) for step in (60, 70, 80, 90, 100)] == [0.4, 0.3, 0.35, 0.35, 0.4]


def test_the_table_stands_beside_the_papers() -> None:
    text = markdown(compare(RESULTS, events(), []))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert all(len(row) == 3 + len(COLUMNS) for row in rows)
    assert ["early, K2.5 Table 1", "0%", "10:90", "25.8", "43.8", "65.7", "45.5", "58.5", "24.8"] in rows
    assert ["early, ours", "0%", "10:90", *["60.0 ± 10.0"] * 6] in rows
    assert ["best constant answer", "", "", *["25.0"] * 6] in rows
    assert ["early minus mid, K2.5", "", "", "+0.8", "+3.1", "+1.6", "+1.6", "-0.1", "+0.8"] in rows


def test_the_page_is_whole_and_loads_nothing() -> None:
    page = Page(
        render(compare(RESULTS, events(), []), events(), {"run_id": "<fusion>", "error": "late-2: out of <memory>"})
    )
    text = " ".join(page.texts)
    assert "<fusion>" in text and "out of <memory>" in text and "25.8" in text and "Held-out text loss" in text
    assert not page.addresses


def test_an_unfinished_ablation_tells_what_there_is() -> None:
    some = [result("mid", 0), result("late", 1)]
    found = compare(some, {}, [])
    assert found["differences"] == {} and found["dips"]["mid"][0]["rise"] is None
    assert "± 0" not in markdown(found)
    apart = compare([result("early", 0), result("late", 1)], {}, [])  # no seed in common
    assert apart["differences"]["late"]["OCR"]["score"] == {"mean": None, "half": None, "n": 0}
    assert "early is" not in markdown(apart)
    one = compare([result("early", 0), result("mid", 0)], {}, cells([0]))
    assert sentences(one)[0] == "no result: late-0"
    every = ", ".join(column.name for column in COLUMNS)
    assert f"early against mid, score of {every}: no verdict from 1 seed, it takes 3 or more" in sentences(one)
    Page(render(found, {}, {"run_id": "x"}))
