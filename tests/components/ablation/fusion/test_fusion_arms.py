"""The arms' schedules against Table 1: what differs, and what must not."""

from __future__ import annotations

import pytest

from components.ablation.cells import of_cell
from components.ablation.fusion.arms import ARMS, COLUMNS, cells
from components.fusion_arm.config import Config
from components.fusion_arm.stage import FAMILIES, require_budget, trained_tokens
from model.boundary.errors import MoonflowError
from model.data.batches.stream import StreamState
from model.data.families import FAMILIES as GENERATORS
from model.data.order.family_shares import TEXT, VISION
from model.data.order.schedule import fusion
from model.evals.suites import SUITES


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_has_a_tenth_of_vision_in_its_own_time(name: str) -> None:
    arm = ARMS[name]
    schedule = fusion(arm.vision_ratio, arm.vision_start)
    whole = schedule.budget()
    assert sum(whole[family] for family in VISION) == pytest.approx(0.1) == arm.budget
    assert sum(schedule.shares(0.999)[family] for family in VISION) == pytest.approx(arm.vision_ratio)
    if arm.vision_start:
        assert all(schedule.shares(arm.vision_start - 0.001)[family] == 0 for family in VISION)
    # Within a modality the arms read the same families in the same proportions.
    assert whole["recall"] / whole["fact_qa"] == pytest.approx(TEXT["recall"] / TEXT["fact_qa"])
    assert whole["photo"] / whole["chart"] == pytest.approx(VISION["photo"] / VISION["chart"])


def test_the_papers_figures_are_table_1s() -> None:
    assert [(arm.vision_start, arm.ratio) for arm in ARMS.values()] == [(0.0, "10:90"), (0.5, "20:80"), (0.8, "50:50")]
    rows = [[25.8, 43.8, 65.7, 45.5, 58.5, 24.8], [25.0, 40.7, 64.1, 43.9, 58.6, 24.0],
            [24.2, 39.0, 61.5, 43.1, 57.8, 24.0]]  # fmt: skip
    assert [[arm.paper[column.name] for column in COLUMNS] for arm in ARMS.values()] == rows


def test_joint_pretraining_is_early_fusion_unless_told_otherwise() -> None:
    schedule = fusion(0.35, 0.0)
    assert not schedule.changes and sum(schedule.shares(0.0)[family] for family in VISION) == pytest.approx(0.35)


def test_columns_name_suites_and_families_that_exist() -> None:
    for column in COLUMNS:
        assert set(column.suites) <= set(SUITES) and set(column.families) <= set(GENERATORS)
        assert {SUITES[suite].family for suite in column.suites} <= set(FAMILIES)


def test_a_cell_is_an_arm_and_a_seed() -> None:
    assert Config.cells(range(2)) == cells(range(2)) == ["early-0", "mid-0", "late-0", "early-1", "mid-1", "late-1"]
    for cell in cells(range(2)):
        assert Config.task_name("fusion_arm", of_cell(cell, ARMS)) == f"fusion_arm-{cell}"
    assert Config.parse(of_cell("late-12", ARMS), "here").model_dump()["seed"] == 12
    for wrong in ("early", "soon-1", "early-x", "early-1-2"):
        with pytest.raises(MoonflowError, match="early, mid, late"):
            of_cell(wrong, ARMS)


def test_a_budget_that_was_missed_is_an_error() -> None:
    state = StreamState(
        batches=1, taken={}, passed={}, tokens={"recall": 90_000, "photo": 10_000}, vision=10_000, skipped=0
    )
    assert trained_tokens(state) == {"vision": 10_000, "text": 90_000}
    require_budget(0.1, {"vision": 1_004_000, "text": 8_996_000})
    require_budget(0.1, {"vision": 700, "text": 9_300})  # a document of every family
    with pytest.raises(MoonflowError, match="budget is 1000000"):
        require_budget(0.1, {"vision": 1_006_000, "text": 8_994_000})
