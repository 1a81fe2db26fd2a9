"""The arms of the SFT ablation: what they read, and what they are measured on."""

from __future__ import annotations

import pytest

from components.ablation.cells import of_cell
from components.ablation.sft.arms import ARMS, NARROW_PROGRAMS, PROGRAMS, SUITES, TWINS, VISION, cells
from components.sft_arm.config import Config
from model.boundary.errors import MoonflowError
from model.data.families import FAMILIES
from model.data.order.mixtures import mixtures
from model.evals.suites import SUITES as HELD_OUT


def test_the_narrow_arm_gives_half_of_the_image_programs_share_to_hand_made_ones() -> None:
    trajectories = mixtures("broad").trajectories
    text, narrow = (ARMS[name].mixture(trajectories) for name in ("text", "narrow"))
    assert text == trajectories
    assert sum(narrow.values()) == pytest.approx(sum(text.values()))
    assert narrow[PROGRAMS] == narrow[NARROW_PROGRAMS] == text[PROGRAMS] / 2
    assert {name: weight for name, weight in narrow.items() if name not in (PROGRAMS, NARROW_PROGRAMS)} == {
        name: weight for name, weight in text.items() if name != PROGRAMS
    }
    assert set(narrow) <= set(mixtures("broad").made)


def test_only_the_narrow_arm_reads_pictures() -> None:
    trajectories = mixtures("broad").trajectories
    shown = {name: {FAMILIES[f].modality for f in arm.mixture(trajectories)} for name, arm in ARMS.items()}
    assert shown["text"] == {"text"} and shown["narrow"] == {"text", "image"}


def test_the_suites_are_of_images_and_vision_ones_call_no_tool() -> None:
    assert set(SUITES) == {*TWINS, *VISION} <= set(HELD_OUT)
    for name in SUITES:
        family = FAMILIES[HELD_OUT[name].family]
        tools = family.sample(0, "eval", 0).tools
        assert family.modality == "image" and bool(tools) == (name in TWINS)


def test_the_checkpoint_before_is_one_cell_and_the_others_have_every_seed() -> None:
    assert Config.cells(range(2)) == cells(range(2)) == ["before-0", "text-0", "narrow-0", "text-1", "narrow-1"]
    for cell in cells(range(2)):
        assert Config.task_name("sft_arm", of_cell(cell, ARMS)) == f"sft_arm-{cell}"
        Config.parse(of_cell(cell, ARMS), "here")
    with pytest.raises(MoonflowError, match="before, text, narrow, a dash and a number"):
        of_cell("early-0", ARMS)
