"""The comparison of the swarm ablation's arms, on figures whose answer is known."""

from __future__ import annotations

import math
from typing import Any

import pytest

from components.ablation import ablations
from components.ablation.swarm.claims import claims
from components.ablation.swarm.comparison import compare, figures_of, metrics, rounds_of
from components.ablation.swarm.page import by_parts, render
from components.ablation.swarm.table import markdown, sentences, tables
from model.swarm.ways import summary
from tests.components.finish.page import Page

SIZES = (2, 4, 16)
STEPS = {"swarm": 5.0, "single": 4.0, "hide_tool_result": 6.0, "discard_all": 7.0, "must_delegate": 5.0}  # of two parts


def row(way: str, size: int, f1: float, family: str = "world_wide", **more: Any) -> dict[str, Any]:
    steps = STEPS[way] if way in ("swarm", "must_delegate") else STEPS[way.removeprefix("untrained_")] * size / 2
    found = {"way": way, "family": family, "size": size, "f1": f1, "critical_steps": steps, "seconds": steps / 10}
    return found | {"context_tokens": 100.0 + size, "delegated": 0.0, "failed": 0, "lost": 0} | more


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


def rounds(*rewards: float, parallel: float = 2.0) -> list[dict[str, float]]:
    """Bonuses that fall to 0 in a third of the rounds."""
    scale = [max(0.0, 1 - 3 * t / len(rewards)) for t in range(len(rewards))]
    return [
        {"step": t + 1, "reward/perf": reward, "swarm/auxiliary_scale": scale[t], "swarm/subtasks": 2.0 * t,
         "swarm/parallelism": parallel, "reward/parallel": parallel / 4, "reward/finish": 0.5}
        for t, reward in enumerate(rewards)
    ] + [{"step": len(rewards), "swarm/f1_gain_points": 1.0}]  # fmt: skip


EVENTS = {
    "swarm_arm-trained-0": rounds(0.1, 0.2, 0.2, 0.3, 0.4, 0.4), "swarm_arm-trained-1": rounds(*[0.2] * 5, 0.5),
}  # fmt: skip
RESULTS = [result(), result(seed=1, gain=0.2)]
CELLS = ["trained-0", "trained-1", "trained-2"]


def test_figures_are_of_the_best_single_agent_and_of_the_wide_end() -> None:
    found = figures_of(RESULTS[0])
    assert found == pytest.approx({
        "f1_gain_points": 10.0, "easy_overhead": 1.0, "easy_f1": 1.0, "easy_f1_points": 0.0, "wide_f1": 0.6,
        "swarm_f1": 0.6, "must_delegate_f1": None, "halved_swarm_f1": 0.6, "halved_single_f1": 0.2,
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
    assert found["wide_steps_ratio"] == pytest.approx(6.4) and found["f1_gain_points"] == 10
    assert broken["summary"]["wall_clock_ratio"] is None, "seconds are of fewer tasks, which may all have broken"
    for each in broken["table"]:
        if each["way"] == "swarm" and each["size"] == 16:
            del each["critical_steps"]
    broken["summary"] = summary(broken["table"])
    assert figures_of(broken)["wide_steps_ratio"] is figures_of(broken)["f1_gain_points"] is None


def test_the_reward_without_bonuses_is_that_of_the_rounds_that_have_none_and_of_those_before() -> None:
    found = rounds_of(rounds(9.0, 0.3, 0.5, 0.1, 0.3, 0.5, 0.6, 0.8, 1.0))
    assert found == pytest.approx({
        "reward_before": 3.266666, "reward_first": 0.3, "reward_last": 0.8, "subtasks_last": 15.0,
        "parallelism_last": 2.0, "finish_last": 0.5, "bonuses_earned": 1.0,
    }, rel=1e-5)  # fmt: skip
    never = [{**each, "swarm/auxiliary_scale": 1.0} for each in rounds(0.1, 0.2, 0.3)]
    assert rounds_of(never)["reward_first"] is rounds_of(never)["reward_last"] is None
    assert set(rounds_of([]).values()) == {None}


def test_the_claims_are_judged_by_the_mean_and_show_each_seed_and_those_without_a_result() -> None:
    verdicts = claims(compare(RESULTS, EVENTS, CELLS))
    assert [claim.met for claim in verdicts] == [True] * 6
    assert {claim.holds for claim in verdicts} == {None}, "two seeds are too few"
    three = claims(
        compare([*RESULTS, result(seed=2)], EVENTS | {"swarm_arm-trained-2": rounds(*[0.2] * 5, 0.5)}, CELLS)
    )
    assert [claim.holds for claim in three] == [True] * 6
    half = 12.7062 * math.sqrt(50) / math.sqrt(2)
    assert verdicts[0].figures == f"15.00 ± {half:.2f}: 10.00, 20.00 points; no result: trained-2"
    worse = claims(compare([result(gain=0.05), result(seed=1, gain=0.06)], {}, []))
    assert worse[0].met is False and worse[1].met is True and worse[5].met is None
    slow = claims(compare([result(gain=-0.1)], {"swarm_arm-trained-0": rounds(0.4, 0.2, 0.2, 0.2, 0.1, 0.1)}, []))
    assert slow[1].met is False and slow[5].met is False
    assert {claim.verdict for claim in slow} == {"no verdict from 1 seed, it takes 3 or more"}
    # It rises while there are bonuses, and falls when they are gone.
    only_with = claims(compare(RESULTS[:1], {"swarm_arm-trained-0": rounds(0.1, 0.9, 0.3, 0.3, 0.5, 0.5)}, []))
    assert only_with[5].met is False


def test_a_swarm_that_gives_up_meets_no_claim_about_time_or_contexts() -> None:
    nothing = result(gain=-0.5)
    nothing["table"] = [{**each, "f1": 0.0} for each in nothing["table"]]
    assert [claim.met for claim in claims(compare([nothing], {}, []))[1:5]] == [False] * 4
    less = result(gain=-0.02)  # two points below the agent, in no time
    less["table"] = [
        {**each, "f1": 0.98} if each["size"] == 1 and each["way"] == "swarm" else each for each in less["table"]
    ]
    assert [claim.met for claim in claims(compare([less], {}, []))[2:4]] == [False] * 2
    blind = result()  # in half the window it loses less than the agent, which still finds more
    blind["halved"] = [{**each, "f1": 0.01 if each["way"] == "swarm" else 0.2} for each in blind["halved"]]
    blind["table"] = [{**each, "f1": 0.1} if each["way"] == "swarm" else each for each in blind["table"]]
    assert claims(compare([blind], {}, []))[4].met is False


def test_the_best_single_agent_may_be_that_of_before_parl() -> None:
    before = result()
    before["table"] += [row("untrained_single", size, 0.58, context_tokens=90.0) for size in SIZES]
    before["table"].append(row("untrained_single", 1, 1.0, "world_easy", critical_steps=2.5))
    before["summary"] = summary(before["table"])
    found = figures_of(before)
    assert found["f1_gain_points"] == pytest.approx(2.0) and found["wide_f1_points"] == pytest.approx(2.0)
    assert claims(compare([before], EVENTS, []))[0].met is False


def test_the_figures_of_a_claim_are_of_the_same_seeds_and_the_others_are_named() -> None:
    broken = result(seed=1)
    for each in broken["table"]:
        if each["way"] == "swarm" and each["size"] == 16:
            del each["seconds"]
    claim = claims(compare([result(), broken], EVENTS, CELLS))[1]
    told = claim.figures
    assert claim.verdict == "no verdict from 1 seed, it takes 3 or more"
    assert told.startswith("0.60: 0.60 F1; 10.00: 10.00 points of F1; 6.40: 6.40 times the steps;")
    assert told.endswith("; seed 1 is left out: it has no figure for times the seconds; no result: trained-2")


def test_beside_other_arms_the_claims_are_about_these_alone() -> None:
    forced = [result("forced", gain=0.05), result("trained", gain=0.1)]
    for run, f1 in zip(forced, (0.4, 0.5), strict=True):
        run["table"] += [row("must_delegate", size, f1) for size in SIZES]
    events = {
        "swarm_arm-trained-0": rounds(*[0.2] * 6), "swarm_arm-no_parallel-0": rounds(*[0.2] * 6, parallel=1.0),
        "swarm_arm-no_finish-0": [{**each, "swarm/subtasks": 30.0} for each in rounds(*[0.2] * 6)],
        "swarm_arm-constant-0": rounds(*[0.2] * 6, parallel=4.0),
    }  # fmt: skip
    others = [result("no_parallel"), result("no_finish", gain=0.05), result("constant", gain=0.05)]
    verdicts = claims(compare([*forced, *others], events, []))
    assert [claim.text.split(":")[0] for claim in verdicts] == ["no_parallel", "no_finish", "constant", "forced"]
    assert [claim.met for claim in verdicts] == [True] * 4
    assert verdicts[0].figures == "1.00: 1.00 assignments at once, in trained 2.00: 2.00 assignments at once"
    same = [result(arm) for arm in ("trained", "no_parallel", "no_finish", "constant")]
    alike = {f"swarm_arm-{run['arm']}-0": rounds(*[0.2] * 6) for run in same}
    assert [claim.met for claim in claims(compare(same, alike, []))] == [False] * 3
    assert [claim.met for claim in claims(compare([result("forced")], {}, []))] == [None]


def test_episodes_and_sub_agents_that_broke_have_columns_where_there_are_any() -> None:
    broken = result()
    broken["table"][2] |= {"lost": 3}
    assert "with a sub-agent that broke" in tables(compare([broken], {}, []))[1].head
    assert "episodes that broke" not in tables(compare([broken], {}, []))[1].head
    assert tables(compare([broken], {}, []))[1].rows[2][-1] == "3"


def test_the_tables_have_each_arm_each_way_and_each_number_of_parts() -> None:
    found = compare([*RESULTS, result("constant")], EVENTS, [*CELLS, "constant-0", "constant-1"])
    arms, trained, *_ = tables(found)
    assert [each[0] for each in arms.rows] == ["trained", "constant"]
    assert arms.rows[0][1] == "15.0 ± 7.1" and arms.rows[1][1] == "10.0"
    assert [each[:3] for each in trained.rows[2:4]] == [
        ["swarm", "2", "0.65 ± 0.07"],
        ["one agent", "2", "0.50 ± 0.00"],
    ]
    assert all(len(each) == len(table.head) for table in tables(found) for each in table.rows)
    untimed = result()
    untimed["halved"] = [{name: value for name, value in row.items() if name != "seconds"} for row in untimed["halved"]]
    _, whole, half = tables(compare([untimed], {}, []))
    assert "seconds" in whole.head and half.head == [name for name in whole.head if name != "seconds"]
    assert "| one agent, results hidden | 16 | 0.40 ± 0.00 | 48.0 ± 0.0 |" in markdown(found)
    assert "constant: the auxiliary rewards never fall" in "\n".join(sentences(found))
    assert sentences(found)[0] == "no result: trained-2, constant-1"


def test_an_arm_of_which_no_seed_finished_is_shown_too() -> None:
    found = compare([result("no_finish")], {"swarm_arm-forced-0": rounds(0.1, 0.2)}, ["no_finish-0", "forced-0"])
    assert set(found["arms"]) == {"no_finish", "forced"}
    assert sentences(found)[0] == "no result: forced-0" and sentences(found)[2].endswith("must delegate")
    assert tables(found)[0].rows[1] == ["forced", *[""] * 8]
    assert not any("/forced" in name for name in metrics(found))
    assert "no result: forced-0" in render(found, {}, {})


def test_the_page_is_whole_draws_its_curves_and_loads_nothing() -> None:
    found = ablations.compare([*RESULTS, result(seed=2)], EVENTS, [])
    page = Page(ablations.of(found).render(found, EVENTS, {"run_id": "<swarm>", "error": "seed 2: out of <memory>"}))
    text = " ".join(page.texts)
    assert "<swarm>" in text and "out of <memory>" in text and "one agent, starts again" in text and "holds" in text
    assert "Finished subtasks" in text and "the arm trained, means" in text
    assert "Reward without bonuses" in text and "Largest context" in text
    assert not page.addresses
    assert "the arm forced, means" in " ".join(Page(render(compare([result("forced")], {}, []), {}, {})).texts)


def test_metrics_name_figure_arm_way_and_number_of_parts() -> None:
    found = metrics(compare(RESULTS, EVENTS, []))
    assert found["f1_gain_points/trained"] == pytest.approx(15.0)
    assert found["f1/trained/swarm/n16"] == pytest.approx(0.65)
    assert found["critical_steps/trained/discard_all/n4"] == pytest.approx(14.0)
    assert all(math.isfinite(value) for value in found.values())


def test_the_chart_of_time_has_the_single_agents_that_were_timed_whichever_they_are() -> None:
    before = result()
    before["table"] = [
        {name: value for name, value in each.items() if name != "seconds" or each["way"] == "swarm"}
        for each in before["table"]
    ] + [row("untrained_single", size, 0.55) for size in SIZES]
    found = compare([before], {}, [])
    assert set(by_parts(found, "seconds")) == {"swarm", "one agent before PARL"}
    assert set(by_parts(found, "f1")) == {"swarm", "one agent", "one agent, results hidden", "one agent, starts again"}
