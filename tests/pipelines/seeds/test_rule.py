"""Which seeds a run has: every field that seeds something is moved, and nothing else that decides its results."""

from __future__ import annotations

import pytest

from components.runtime.steps import PIPELINES, TRAINING_STEPS, config_class
from model.boundary.errors import MoonflowError
from pipelines.profile import load_profile
from pipelines.seeds.rule import moved, require_same, run_id, seeds_of

SEEDED = [
    (step, name) for step in PIPELINES["k25"] for name in config_class(step).model_fields if "seed" in name.lower()
]
LATER = {step for step, _ in SEEDED} & set(PIPELINES["post_train"])
"""Read from the schemas: a new field with such a name must be moved, or this file says why it is not."""


def test_the_schemas_have_the_seeds_that_we_know_of() -> None:
    assert {step for step, _ in SEEDED} == {"prepare_data", *TRAINING_STEPS, "evaluate"}


@pytest.mark.parametrize(("step", "name"), SEEDED)
def test_every_field_named_after_a_seed_is_moved_by_the_rule(step: str, name: str) -> None:
    profile = load_profile("tiny", [f"{step}.{name}=7"])
    for number in (0, 1, 2, 41):
        assert getattr(moved(profile, number).steps[step], name) == 7 + 1000 * number


def test_post_training_is_repeated_from_the_same_checkpoint() -> None:
    profile = load_profile("post_train", ["import_checkpoint.source=runs/base"])
    after = moved(profile, 2)
    assert seeds_of(after) == {step: seed + 2000 for step, seed in seeds_of(profile).items()}
    assert set(seeds_of(after)) == LATER
    assert after.step("import_checkpoint") == profile.step("import_checkpoint")


def test_no_two_runs_share_the_seed_of_a_step() -> None:
    runs = [seeds_of(moved(load_profile("tiny"), number)) for number in range(20)]
    for step, _ in SEEDED:
        assert len({run[step] for run in runs}) == len(runs)


def test_nothing_but_the_seeds_and_the_champion_changes() -> None:
    profile = load_profile("smoke")
    before, after = profile.as_toml().splitlines(), moved(profile, 3).as_toml().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert changed.count(('champion = "moonflow@champion"', 'champion = ""')) == 1
    assert len(changed) == 1 + len(SEEDED)
    assert all(old.startswith("seed = ") for old, _ in changed if "champion" not in old)


def test_as_many_held_out_tasks_are_made_as_are_asked_for() -> None:
    for asked, made in ((600, 600), (64, 128)):
        profile = moved(load_profile("tiny", [f"evaluate.samples={asked}"]), 1)
        assert profile.step("prepare_data").model_dump()["eval_samples"] == made


def test_the_fusion_ablation_has_its_own_seeds() -> None:
    with pytest.raises(MoonflowError, match=r"fusion_ablation repeats its arms itself: set run\.seeds"):
        moved(load_profile("fusion"), 1)


def test_a_run_goes_on_only_with_the_values_that_it_was_begun_with() -> None:
    begun = moved(load_profile("smoke"), 2)
    assert require_same(moved(load_profile("smoke"), 2), begun, "runs/x")
    assert require_same(moved(load_profile("smoke", ["prepare_data.processes=1"]), 2), begun, "runs/x")
    assert not require_same(moved(load_profile("smoke", ["evaluate.floors=photo=0.5"]), 2), begun, "runs/x")
    assert not require_same(moved(load_profile("smoke", ["serve.max_tokens=3"]), 2), begun, "runs/x")
    for other, told in (
        (["mid_train.steps=4"], r"runs/x was begun with mid_train\.steps = 3, not 4"),
        (["parl.seed=6"], r"parl\.seed = 2005, not 2006"),
        (["evaluate.samples=6"], r"evaluate\.samples = 4, not 6"),
        (["run.name=mine"], "of profile smoke, not mine"),
    ):
        with pytest.raises(MoonflowError, match=told):
            require_same(moved(load_profile("smoke", other), 2), begun, "runs/x")


def test_runs_have_different_names_in_the_store() -> None:
    profile = load_profile("tiny")
    assert [run_id(profile, number) for number in (1, 12)] == ["tiny-seeds-1", "tiny-seeds-12"]
