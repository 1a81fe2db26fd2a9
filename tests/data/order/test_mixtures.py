"""What a mixture's stages read is made by the data of the same mixture; a wrong name is one line."""

from __future__ import annotations

import pytest

from components.swarm_start.config import Config as StartConfig
from model.boundary.errors import MoonflowError
from model.codec.image import ImageConfig
from model.data.families import FAMILIES, judging, thinking, world
from model.data.families.world import Delegation
from model.data.order.family_shares import LONG_TEXT, TEXT, VISION
from model.data.order.mixtures import MIXTURES, mixtures
from model.data.samples.tokenize import count_tokens
from model.evals.suites import SUITES
from tests.corpus import small_tokenizer

ALL = pytest.mark.parametrize("name", MIXTURES)


@ALL
def test_every_family_that_a_stage_reads_is_made(name: str) -> None:
    shares = mixtures(name)
    stages = (shares.text, shares.long_text, shares.long_vision, *(mixture for _, mixture in shares.vision))
    assert {family for mixture in (*stages, shares.trajectories) for family in mixture} <= set(shares.made)
    # What reads no mixture by name finds its families too: the fusion ablation and the pre-training loss of RL.
    assert {*TEXT, *VISION, *LONG_TEXT} <= set(shares.made)


@ALL
def test_a_family_is_made_once_and_among_samples_of_its_kind(name: str) -> None:
    shares = mixtures(name)
    assert len(set(shares.made)) == len(shares.made) and set(shares.made) <= set(FAMILIES)
    assert {FAMILIES[family].modality for family in shares.text_samples} == {"text"}
    assert "text" not in {FAMILIES[family].modality for family in shares.image_samples}
    assert set(shares.long_samples) == {"needle", "video_needle"}


@ALL
def test_the_vision_mixture_changes_at_rising_moments(name: str) -> None:
    starts = [start for start, _ in mixtures(name).vision]
    assert starts[0] == 0.0 and starts == sorted(set(starts)) and starts[-1] < 1


def test_every_family_is_made_by_a_mixture_and_broad_makes_all_but_those_of_one_purpose() -> None:
    of_world, free, judged = (
        {family.name for family in families} for families in (world.FAMILIES, thinking.FREE, judging.FAMILIES)
    )
    assert set(mixtures("broad").made) == set(FAMILIES) - of_world - free - judged
    assert set(mixtures("swarm").made) == set(FAMILIES) - free - judged
    assert set(mixtures("thinking").made) == set(FAMILIES) - of_world - judged
    assert set(mixtures("judged").made) == set(FAMILIES) - of_world - free


def test_a_judges_training_reads_verdicts_most_and_keeps_a_share_of_all_else() -> None:
    shares = mixtures("judged").trajectories
    verdicts = sum(shares[name] for name in ("judge_pair", "judge_rubric", "judge_list"))
    assert verdicts > sum(shares.values()) / 2 and set(mixtures("broad").trajectories) < set(shares)


def test_the_swarms_cold_start_reads_the_world_most_and_keeps_a_share_of_all_else() -> None:
    shares, broad = mixtures("swarm").trajectories, mixtures("broad").trajectories
    of_world = sum(share for name, share in shares.items() if name.startswith("world_"))
    assert of_world / sum(shares.values()) == pytest.approx(0.82, abs=0.01) and set(broad) < set(shares)
    assert mixtures("short").world is None and mixtures("broad").world is None
    assert {suite.family for suite in SUITES.values()} <= set(FAMILIES)


def test_what_the_swarms_cold_start_can_read_delegates_as_often_whatever_the_size_of_the_task() -> None:
    tasks = mixtures("swarm").world
    assert tasks is not None and tasks.delegated == 0.05
    often = Delegation(0.5, mixed=True, up_to=tasks.delegated_up_to)  # as often as not: a small sample shows the bias
    assert set(tasks.sizes) == set(world.DRAWS)
    for name, sizes in tasks.sizes.items():
        for size in sizes:
            family, read = world.world_family(name, [size], delegation=often), []
            for index in range(24):
                sample = family.sample(0, "train", index)
                if count_tokens(sample, small_tokenizer(), ImageConfig())[0] <= StartConfig().tokens_per_row:
                    read.append(sample.environment["mode"] == "swarm")
            few = len(read) <= 2  # next to none: the tasks are larger than a row
            assert few and not any(read) or 0.25 <= sum(read) / len(read) <= 0.75, (name, size, len(read), sum(read))


@ALL
def test_hand_made_visual_trajectories_are_read_by_no_stage_and_asked_in_no_suite(name: str) -> None:
    shares = mixtures(name)
    stages = (shares.text, shares.long_text, shares.long_vision, shares.trajectories, *(m for _, m in shares.vision))
    assert all("narrow_program_image" not in mixture for mixture in stages)
    assert "narrow_program_image" not in {suite.family for suite in SUITES.values()}


def test_image_programs_have_the_largest_share_of_the_broad_fine_tuning() -> None:
    shares = mixtures("broad").trajectories
    assert max(shares, key=lambda name: shares[name]) == "image_program"


def test_what_is_learned_before_mid_training_is_read_in_it() -> None:
    broad = mixtures("broad")
    assert {"code_window", "prose_window", "fact_qa"} <= set(broad.long_text)
    assert {family for _, mixture in broad.vision for family in mixture} <= set(broad.long_vision)


def test_an_unknown_name_tells_the_nearest() -> None:
    with pytest.raises(MoonflowError, match="no mixture 'brod'; did you mean broad. choose from short, broad"):
        mixtures("brod")
