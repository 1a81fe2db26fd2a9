"""The arms of the swarm ablation, and where an arm has its seed from."""

from __future__ import annotations

import math

import pytest

from components.ablation.swarm.arms import ARMS, cells, seed_of, starts
from components.swarm_arm.config import Config as ArmConfig
from components.swarm_start.config import Config as StartConfig
from model.boundary.errors import MoonflowError


def test_an_arm_takes_one_thing_away_and_the_first_none() -> None:
    whole, *others = ARMS.values()
    assert whole.annealed_until(0.75) == 0.75 and (whole.parallel, whole.finish, whole.forced) == (1, 1, False)
    differing = [(a.parallel != 1) + (a.finish != 1) + (not a.anneals) + a.forced for a in others]
    assert differing == [1, 1, 1, 1] and ARMS["constant"].annealed_until(0.75) == math.inf
    assert {arm for arm in ARMS if ArmConfig(arm=arm).arm == arm} == set(ARMS)


def test_tasks_are_named_by_arm_and_seed_and_an_arm_has_the_seed_of_its_cold_start() -> None:
    assert StartConfig.cells(range(2)) == starts(range(2)) == ["0", "1"]
    assert (
        ArmConfig.cells(range(2)) == cells(range(2))
        and cells(range(2))[0] == "trained-0"
        and len(cells(range(2))) == 2 * len(ARMS)
    )
    name = StartConfig.task_name("swarm_start", {"seed": 12})
    assert name == "swarm_start-12" and seed_of(f"s3://store/run/{name}/3") == 12
    with pytest.raises(MoonflowError, match="no output of swarm_start"):
        seed_of("s3://store/run/parl/3")
