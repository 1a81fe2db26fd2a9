"""The comparison of the swarm ablation's arms, on figures whose answer is known."""

from __future__ import annotations

import math
from typing import Any

import pytest

from components.ablation import ablations
from components.ablation.swarm.claims import claims
from components.ablation.swarm.comparison import compare, figures_of, metrics, rounds_of
from components.ablation.swarm.page import render
from components.ablation.swarm.table import markdown, sentences, tables
from model.swarm.ways import summary
from tests.components.finish.page import Page

SIZES = (2, 4, 16)
STEPS = {"swarm": 5.0, "single": 4.0, "hide_tool_result": 6.0, "discard_all": 7.0}  # of two parts


def row(way: str, size: int, f1: float, family: str = "world_wide", **more: Any) -> dict[str, Any]:
    steps = STEPS[way] if way == "swarm" else STEPS[way] * size / 2
    found = {"way": way, "family": family, "size": size, "f1": f1, "critical_steps": steps, "seconds": steps / 10}
    return found | {"context_tokens": 100.0 + size, "delegated": 0.0, "failed": 0} | more


def result(arm: str = "trained", seed: int = 0, gain: float = 0.1) -> dict[str, Any]:
    """The best single agent finds half, whatever N is; in half the window it loses 0.3 and the swarm nothing."""
    table = [row("swarm", 1, 1.0, "world_easy"), row("single", 1, 1.0, "world_easy", critical_steps=5.0)]
    for size in SIZES:
        context = {"context_tokens": 200.0} if size == 16 else {}
        table.append(row("swarm", size, 0.5 + gain, seconds=0.5 + 0.01 * size, delegated=1.0))
        table += [
            row("single", size, 0.5, **context),
            row("hide_tool_result", size, 0.4),
            row("discard_all", size, 0.3),
        ]
    halved = [{**each, "f1": each["f1"] - 0.3 * (each["way"] != "swarm")} for each in table]
    return {"name": "swarm", "arm": arm, "seed": seed, "table": table, "halved": halved, "summary": summary(table)}


def rounds(*rewards: float) -> list[dict[str, float]]:
    scale = [max(0.0, 1 - t / (len(rewards) - 1)) for t in range(len(rewards))]
    return [
        {"step": t + 1, "reward/perf": reward, "swarm/auxiliary_scale": scale[t], "swarm/subtasks": 2.0 * t}
        for t, reward in enumerate(rewards)
    ] + [{"step": len(rewards), "swarm/f1_gain_points": 1.0}]  # fmt: skip


EVENTS = {
    "swarm_start-0": [], "swarm_start-1": [], "swarm_start-2": [],
    "swarm_arm-trained-0": rounds(0.1, 0.2, 0.2, 0.4), "swarm_arm-trained-1": rounds(0.2, 0.2, 0.2, 0.5),
}  # fmt: skip
RESULTS = [result(), result(seed=1, gain=0.2)]


def test_figures_are_of_the_best_single_agent_and_of_the_wide_end() -> None:
    found = figures_of(RESULTS[0])
    assert found == pytest.approx({
        "f1_gain_points": 10.0, "easy_overhead": 1.0, "easy_f1": 1.0, "wide_f1": 0.6,
        "wide_f1_points": 10.0, "wide_steps_ratio": 32 / 5,
        "wide_seconds_ratio": 3.2 / 0.66, "context_ratio": 200 / 116, "growth": 0.66 / 0.54,
        "halved_swarm_points": 0.0, "halved_single_points": 30.0,
    })  # fmt: skip


def test_figures_whose_rows_are_missing_or_broke_are_unknown() -> None:
    broken = result()
    broken["halved"] = []
    for each in broken["table"]:
        if each["way"] == "swarm" and each["size"] == 16:
            del each["seconds"]
    broken["summary"] = summary(broken["table"])
    found = figures_of(broken)
    assert found["wide_seconds_ratio"] is found["growth"] is found["halved_swarm_points"] is None
    assert found["wide_steps_ratio"] == pytest.approx(6.4) and found["f1_gain_points"] is None


def test_the_reward_without_bonuses_is_that_of_the_first_and_the_last_quarter() -> None:
    found = rounds_of(rounds(0.1, 0.3, 0.3, 0.3, 0.3, 0.3, 0.4, 0.6))
    assert found == {"reward_first": 0.2, "reward_last": 0.5, "subtasks_last": 13.0, "bonuses_last": 0.0}
    assert set(rounds_of([]).values()) == {None}


def test_the_claims_are_judged_by_the_mean_and_show_each_seed_and_those_that_did_not_finish() -> None:
    verdicts = claims(compare(RESULTS, EVENTS))
    assert [claim.holds for claim in verdicts] == [True] * 6
    half = 12.7062 * math.sqrt(50) / math.sqrt(2)
    assert verdicts[0].figures == f"15.00 ± {half:.2f}: 10.00, 20.00 points; seed 2 did not finish"
    worse = claims(compare([result(gain=0.05), result(seed=1, gain=0.06)], {}))
    assert worse[0].holds is False and worse[1].holds is True and worse[5].holds is None
    nothing = result(gain=-0.5)
    nothing["table"] = [{**each, "f1": 0.0} for each in nothing["table"]]
    assert [claim.holds for claim in claims(compare([nothing], {}))[1:4]] == [False] * 3
    slow = claims(compare([result(gain=-0.1)], {"swarm_arm-trained-0": rounds(0.4, 0.2)}))
    assert slow[1].holds is False and slow[5].holds is False
    assert [claim.holds for claim in claims(compare([result("forced")], {}))] == [None] * 6


def test_the_tables_have_each_arm_each_way_and_each_number_of_parts() -> None:
    found = compare([*RESULTS, result("constant")], EVENTS)
    arms, trained, *_ = tables(found)
    assert [each[0] for each in arms.rows] == ["trained", "constant"]
    assert arms.rows[0][1] == "15.0 ± 7.1" and arms.rows[1][1] == "10.0"
    assert [each[:3] for each in trained.rows[2:4]] == [
        ["swarm", "2", "0.65 ± 0.07"],
        ["one agent", "2", "0.50 ± 0.00"],
    ]
    assert all(len(each) == len(table.head) for table in tables(found) for each in table.rows)
    assert "| one agent, results hidden | 16 | 0.40 ± 0.00 | 48.0 ± 0.0 |" in markdown(found)
    assert "constant: the auxiliary rewards never fall" in "\n".join(sentences(found))
    assert "seed 1 did not finish; seed 2 did not finish" in "\n".join(sentences(found))


def test_an_arm_of_which_no_seed_finished_is_shown_too() -> None:
    found = compare([result("no_finish")], {"swarm_arm-forced-0": rounds(0.1, 0.2), "swarm_arm-no_finish-0": []})
    assert set(found["arms"]) == {"no_finish", "forced"} and found["arms"]["forced"]["missing"] == [0]
    assert sentences(found)[1].endswith("must delegate; seed 0 did not finish")
    assert tables(found)[0].rows[1] == ["forced", *[""] * 7]
    assert not any("/forced" in name for name in metrics(found))
    assert "did not finish" in render(found, {}, {})


def test_the_page_is_whole_draws_its_curves_and_loads_nothing() -> None:
    found = ablations.compare(RESULTS, EVENTS)
    page = Page(ablations.of(found).render(found, EVENTS, {"run_id": "<swarm>", "error": "seed 2: out of <memory>"}))
    text = " ".join(page.texts)
    assert "<swarm>" in text and "out of <memory>" in text and "one agent, starts again" in text and "holds" in text
    assert "Reward without bonuses" in text and "Largest context" in text
    assert not page.addresses
    Page(render(compare([result("forced")], {}), {}, {}))


def test_metrics_name_figure_arm_way_and_number_of_parts() -> None:
    found = metrics(compare(RESULTS, EVENTS))
    assert found["f1_gain_points/trained"] == pytest.approx(15.0)
    assert found["f1/trained/swarm/n16"] == pytest.approx(0.65)
    assert found["critical_steps/trained/discard_all/n4"] == pytest.approx(14.0)
    assert all(math.isfinite(value) for value in found.values())
