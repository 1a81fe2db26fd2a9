from __future__ import annotations

import math
from typing import Any

import pytest

from components.finish.report import render
from tests.components.eval_rows import eval_row
from tests.components.finish.page import Page


def row(step: str, suite: str, value: float, n: int = 96) -> dict[str, Any]:
    return eval_row(step, suite, value, math.sqrt(value * (1 - value) / n), n=n)


SUMMARY = {
    "seconds": 531.0,
    "steps": [{"name": "joint_pretrain", "seconds": 190.0, "tokens_per_s": 7100.0}, {"name": "promote", "seconds": 2.0,
              "tokens_per_s": 0.0}],
    "evals": [row("init", "digit_string", 0.0), row("joint_pretrain", "digit_string", 0.9),
              row("parl", "digit_string", 0.5)],
    "promoted": {"version": "3", "manifest_sha256": "f" * 64, "commit": "0123456789abcdef"},
    "versions": {"torch": "2.13.0"},
}  # fmt: skip
EVENTS = {
    "joint_pretrain": [
        {"step": i, "time": i * 0.1, "loss/text": 3.0 / (i + 1), "loss/vision": 2.0 / (i + 1)} for i in range(50)
    ],
    "parl": [
        {"step": i, "time": i, "reward/mean": i / 9, "swarm/parallelism": i / 3, "swarm/critical_steps": 8 - i / 3}
        for i in range(9)
    ],
}
EXTRA = {
    "run_id": "tiny-1", "profile": "tiny",
    "evaluate": {"decision": "promote", "reasons": ["digit_string 0.95 >= 0.9"], "chance": {"digit_string": 0.01},
                 "swarm": {"parl": {"wide_search_single": {"critical_steps": 8.0, "parallelism": 0.0},
                                    "wide_search_swarm": {"critical_steps": 4.0, "parallelism": 3.0}}}},
    "serve": {"question": "Which digits?", "answer": "371", "expected": "371", "image": "data:image/png;base64,AAAA"},
}  # fmt: skip


def test_a_whole_page_is_self_contained_and_well_formed():
    page = Page(render(SUMMARY, EVENTS, EXTRA))
    assert page.addresses == ["data:image/png;base64,AAAA"]
    text = " ".join(page.texts)
    for expected in ("tiny-1", "promoted", "in the serve task", "8 min 51 s", "0123456789", "Which digits?",
                     "right", "0.90", "2.00×", "joint: loss", "PARL: parallelism", "7,100 tok/s", "2.13.0",
                     "digit_string 0.95 >= 0.9"):  # fmt: skip
        assert expected in text, expected
    assert "http" not in text


def rl_told(**events: list[dict[str, float]]) -> str:
    """What the page says between that heading and the next one."""
    text = " ".join(" ".join(Page(render(SUMMARY, events, EXTRA)).texts).split())
    return text.partition("What RL did")[2].partition("Every suite")[0]


def test_what_rl_did_is_told_in_a_line_each():
    told = rl_told(
        visual_rl=[{"step": i, "time": i, "reward/mean": 0.2 + i / 10} for i in (1, 2, 3)],
        rejection_sft=[{"step": 0, "time": 0, "successes/kept": 40.0, "successes/used": 38.0}, {"step": 1, "time": 1}],
        joint_rl=[{"step": 1, "time": 1, "tokens/response": 24.0}, {"step": 9, "time": 2, "tokens/response": 18.5}],
    )
    assert "0.3 in round 1 → 0.5 in round 3" in told and "40 kept, 38 used" in told
    assert "24 in round 1 → 18.5 in round 9" in told


@pytest.mark.parametrize(("kept", "said"), [
    (0.0, "no success was kept, so nothing was trained"), (3.0, "3 kept, none of which fits into a row"),
])  # fmt: skip
def test_rft_without_a_success_to_learn_from_says_so(kept: float, said: str):
    told = rl_told(
        visual_rl=[{"step": 1, "time": 1, "reward/mean": 0.0}],
        rejection_sft=[{"step": 0, "time": 0, "successes/kept": kept, "successes/used": 0.0}],
        joint_rl=[{"step": 1, "time": 1, "episodes/failed": 4.0}],  # every episode of the round
    )
    assert said in told and "0 in round 1" in told and "→" not in told and "Toggle" not in told
    assert rl_told() == ""


def test_the_losses_of_the_users_data_have_a_row_each():
    evaluate = {**EXTRA["evaluate"], "own_losses": {"init": {"chat<b>": 6.93}, "parl": {"chat<b>": 1.5, "cats": 2.25}}}
    text = " ".join(Page(render(SUMMARY, EVENTS, {**EXTRA, "evaluate": evaluate})).texts)
    told = " ".join(text[text.index("Your own data") :].split())
    assert "untrained joint PARL cats – – 2.25 chat<b> 6.93 – 1.50" in told
    assert "Your own data" not in render(SUMMARY, EVENTS, EXTRA)


def test_an_answer_of_the_synced_endpoint_is_told_as_such():
    page = Page(render(SUMMARY, EVENTS, EXTRA | {"serve": EXTRA["serve"] | {"endpoint_checked": True}}))
    assert "Asked over HTTP, at the synced endpoint" in page.texts


def test_a_cell_that_fell_is_marked_and_others_are_not():
    page = Page(render(SUMMARY, EVENTS, EXTRA))
    assert [c for c in page.classes if c.startswith("heat")] == [
        "heat",
        "heat",
        "heat worse lower",
    ] * 2  # matrix, suites
    better = SUMMARY | {"evals": [row("init", "digit_string", 0.5), row("parl", "digit_string", 0.6)]}
    assert not any("lower" in c for c in Page(render(better, EVENTS, EXTRA)).classes)


@pytest.mark.parametrize(("first", "last", "chance", "learned"), [
    (0.0, 0.5, 0.01, "yes"), (0.45, 0.5, 0.01, "no"), (0.0, 0.5, 0.48, "no"),
])  # fmt: skip
def test_learned_means_above_untrained_and_chance(first: float, last: float, chance: float, learned: str):
    summary = SUMMARY | {"evals": [row("init", "photo", first), row("parl", "photo", last)]}
    page = Page(render(summary, {}, {"evaluate": {"chance": {"photo": chance}}}))
    assert page.texts.count(learned) == 1


def test_a_run_that_failed_early_still_has_a_page():
    summary = {"seconds": 3.0, "steps": [], "evals": [], "promoted": None, "versions": {}}
    text = " ".join(Page(render(summary, {}, {"run_id": "r", "error": "joint_rl: <disk> is full"})).texts)
    assert "failed" in text and "joint_rl: <disk> is full" in text


def test_text_from_outside_is_escaped():
    extra = EXTRA | {"serve": {"question": "<script>alert(1)</script>", "answer": "1", "expected": "2"}}
    assert "<script>" not in render(SUMMARY, EVENTS, extra)


def test_a_run_whose_pipeline_promotes_nothing_says_that_it_passed():
    extra = {"evaluate": {"decision": "promote", "reasons": ["digit_string 0.97 >= 0.95"]}}
    page = render(SUMMARY | {"promoted": None}, {}, extra)
    assert 'class="verdict good">passed<' in page and "0.97 &gt;= 0.95" in page


def test_a_held_back_run_says_why():
    extra = {"evaluate": {"decision": "hold", "reasons": ["digit_count 0.20 < 0.7"]}}
    text = " ".join(Page(render(SUMMARY | {"promoted": None}, {}, extra)).texts)
    assert "held back" in text and "digit_count 0.20 < 0.7" in text
