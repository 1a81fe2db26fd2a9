"""Which seeds a run of ``moonflow seeds`` has: in run number i every step's seed is the profile's plus 1000 * i.

The data's seed, which also decides the tokenizer, and that of the first weights are among them. What is measured stays
the same: held-out samples do not depend on the data's seed (``components.prepare_data.stage``), and no run's gate
compares with the model of another run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from model.boundary.errors import MoonflowError
from pipelines.profile import Profile

STRIDE = 1000
"""Larger than what a step adds to its seed for a part of its work (mid_train: 100 for each phase)."""
SEED = "seed"
"""The name of every field of a step's Config that seeds something."""


def seeds_of(profile: Profile) -> dict[str, int]:
    """The seed of every step that has one."""
    return {step: getattr(config, SEED) for step, config in profile.steps.items() if SEED in type(config).model_fields}


def moved(profile: Profile, number: int) -> Profile:
    """The profile of run ``number``; 0 has the profile's own seeds.

    Raises:
        MoonflowError: the profile's pipeline does not evaluate one final model.
    """
    if "evaluate" not in profile.steps:
        raise MoonflowError(
            f"{profile.source}: moonflow seeds repeats pipelines that evaluate one final model; "
            f"{profile.run.pipeline} repeats its arms itself: set run.seeds"
        )
    changes: dict[str, dict[str, Any]] = {
        step: {SEED: seed + STRIDE * number} for step, seed in seeds_of(profile).items()
    }
    # As many tasks as are asked for. More held-out samples leave the first ones, and all training samples, as they are.
    asked = profile.step("evaluate").model_dump()["samples"]
    made = profile.step("prepare_data").model_dump()["eval_samples"]
    changes["prepare_data"]["eval_samples"] = max(made, asked)
    changes["evaluate"]["champion"] = ""
    steps = {
        step: type(config).parse({**config.model_dump(), **changes.get(step, {})}, f"{profile.source}: [{step}]")
        for step, config in profile.steps.items()
    }
    return replace(profile, steps=steps)


def run_id(profile: Profile, number: int) -> str:
    """The run's folder in the object store and its name in MLflow."""
    return f"{profile.run.name}-seeds-{number}"


def require_same(profile: Profile, earlier: Profile, where: str) -> bool:
    """Whether ``earlier``, with which a run was begun, has the same results; False if its last part would change.

    Raises:
        MoonflowError: the run was begun with values that cannot be changed any more; ``where`` is its folder.
    """
    if earlier.run.name != profile.run.name:
        raise MoonflowError(f"{where} is of profile {earlier.run.name}, not {profile.run.name}: give another --run-dir")
    same = True
    for step, config in profile.steps.items():
        before = earlier.step(step)
        if config.repeatable or step == "finish":
            same = same and before.lineage == config.lineage
        elif changed := [name for name, value in config.lineage.items() if before.lineage[name] != value]:
            name = changed[0]
            raise MoonflowError(
                f"{where} was begun with {step}.{name} = {before.lineage[name]!r}, not {config.lineage[name]!r}: give "
                "the same values, or another --run-dir"
            )
        same = same and before.ending == config.ending
    return same
