"""The comparison of the Toggle ablation's arms, on figures whose answer is known."""

from __future__ import annotations

from typing import Any

import pytest

from components.ablation import ablations
from components.ablation.cells import of_cell
from components.ablation.toggle.arms import ARMS, FAMILIES, TRAINED_ON, TRANSFER, cells
from components.ablation.toggle.claims import claims
from components.ablation.toggle.comparison import compare, metrics
from components.toggle_arm.config import Config
from model.data.families import FAMILIES as MADE
from model.rl.toggle import ToggleConfig
from tests.components.finish.page import Page

# arm -> of each seed: accuracy, accuracy at the budget, tokens
FIGURES = {
    "before": [(60.0, 30.0, 80.0)],
    "free": [(90.0, 40.0, 100.0), (80.0, 40.0, 80.0)],
    "toggle": [(90.0, 70.0, 70.0), (81.0, 60.0, 52.0)],
    "budget": [(70.0, 70.0, 20.0), (70.0, 68.0, 20.0)],
}


def result(arm: str, seed: int) -> dict[str, Any]:
    accuracy, at_budget, tokens = FIGURES[arm][seed]
    row = {"accuracy": accuracy, "at_budget": at_budget, "tokens": tokens, "n": 600, "failed": 0}
    return {"name": "toggle", "arm": arm, "seed": seed, "budget": 50, "answers": dict.fromkeys(FAMILIES, row)}


RESULTS = [result(arm, seed) for arm, values in FIGURES.items() for seed in range(len(values))]


def test_arms_are_compared_with_free_seed_by_seed() -> None:
    found = compare(RESULTS, {}, [])
    saved = found["against_free"]["toggle"][TRAINED_ON]["saved"]
    assert saved["seeds"] == pytest.approx({"0": 30.0, "1": 35.0}) and saved["mean"] == pytest.approx(32.5)
    assert found["against_free"]["toggle"][TRANSFER]["accuracy"]["mean"] == pytest.approx(0.5)
    assert set(found["against_free"]) == {"toggle", "budget"}
    assert metrics(found)["against_free/saved/toggle/free_arithmetic"] == pytest.approx(32.5)
    assert metrics(found)["tokens/before/free_reading"] == 80.0


@pytest.mark.parametrize(
    ("arm", "figures", "verdicts"),
    [
        ("toggle", (90.0, 70.0, 70.0), [True, True, True]),
        ("toggle", (90.0, 70.0, 90.0), [False, True, True]),  # it saves too little
        ("toggle", (86.0, 70.0, 70.0), [False, False, False]),  # it costs accuracy
        ("budget", (90.0, 70.0, 20.0), [True, True, True]),
        ("free", (70.0, 40.0, 100.0), [True, False, True]),  # budgets in every round lose nothing then
    ],
)
def test_a_claim_holds_by_its_rule(arm: str, figures: tuple[float, ...], verdicts: list[bool]) -> None:
    row = dict(zip(("accuracy", "at_budget", "tokens"), figures, strict=True))
    changed = [
        {**each, "answers": {name: {**old, **row} for name, old in each["answers"].items()}}
        if each["arm"] == arm and (each["seed"] == 0 or arm == "free")
        else each
        for each in RESULTS
    ]
    assert [claim.met for claim in claims(compare(changed, {}, []))] == verdicts


def test_without_an_arm_its_claims_have_no_verdict_and_the_rest_is_shown() -> None:
    some = [each for each in RESULTS if each["arm"] in ("before", "free", "toggle")]
    assert [claim.met for claim in claims(compare(some, {}, []))] == [True, None, True]
    assert all(claim.met is None for claim in claims(compare(RESULTS[:1], {}, [])))


def test_a_cell_without_a_result_is_named_in_every_verdict() -> None:
    some = [each for each in RESULTS if each["arm"] != "before" and (each["arm"], each["seed"]) != ("toggle", 1)]
    found = compare(some, {}, cells(range(2)))
    assert found["no_result"] == ["before-0", "toggle-1"]
    assert all(claim.figures.endswith("no result: before-0, toggle-1") for claim in claims(found))
    few = "no verdict from 1 seed, it takes 3 or more"
    assert [claim.verdict for claim in claims(found)] == [few] * 3, "Toggle has one seed, budgets in every round two"


def test_the_page_shows_tables_verdicts_and_curves() -> None:
    found = ablations.compare(RESULTS, {}, [])
    rows = [{"step": step, "tokens/response": 90.0 - step, "accuracy/mean": 0.5} for step in (1, 2, 3)]
    events = {f"toggle_arm-{arm}-{seed}": rows for arm in ("free", "toggle") for seed in (0, 1)}
    of = ablations.of(found)
    page = of.render(found, events, {"run_id": "<b>"})
    Page(page)
    assert "&lt;b&gt;" in page and page.count("<svg") == 2
    assert "| toggle | 85.5 ± 6.4 | 65.0 ± 7.1 | 61.0 ± 12.7 | 32.5 |" in of.markdown(found)
    assert any("no verdict from 2 seeds" in line for line in of.sentences(found)) and of.printed(found).rows
    third = [{**each, "seed": 2} for each in RESULTS if each["seed"]]
    assert any(": holds" in line for line in of.sentences(ablations.compare([*RESULTS, *third], {}, [])))


def test_the_arms_differ_in_their_budgets_alone() -> None:
    constants = ToggleConfig(accuracy=0.5, every=1, percentile=50.0)
    toggles = {name: arm.toggle(constants) for name, arm in ARMS.items()}
    assert toggles["before"] is toggles["free"] is None
    lengths, rewards = [10, 20, 30], [1.0, 1.0, 0.0]
    trained = {}
    for name in ("toggle", "budget"):
        toggle = toggles[name]
        assert toggle is not None
        toggle.measure("x", lengths, [True, True, False])
        assert toggle.budgets == {"x": 15.0}
        trained[name] = [toggle.shape(t, "x", rewards, lengths) for t in (0, 1, 2)]
        trained[name].append(toggle.shape(0, "x", [0.0, 1.0, 0.0], lengths))  # below the accuracy
    assert trained["toggle"] == [[1.0, 0.0, 0.0], rewards, [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert trained["budget"] == [[1.0, 0.0, 0.0]] * 3 + [[0.0, 0.0, 0.0]]


def test_every_cell_is_a_task_and_every_family_thinks() -> None:
    assert (
        Config.cells(range(2))
        == cells(range(2))
        == ["before-0", *(f"{a}-{s}" for s in (0, 1) for a in ("free", "toggle", "budget"))]
    )
    for cell in cells(range(2)):
        Config.parse(of_cell(cell, ARMS), "here")
    assert all(MADE[name].sample(0, "eval", 0).thinks for name in FAMILIES)
