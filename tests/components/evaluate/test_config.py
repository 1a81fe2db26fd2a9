"""What is told of the gate's parameters before anything has begun."""

from __future__ import annotations

import pytest

from components.evaluate.config import Config
from components.evaluate.floors import evaluated_abilities, parse_floors
from model.boundary.errors import MoonflowError
from model.data.families import FAMILIES
from model.evals.suites import SUITES


def test_floors_of_suites_and_of_abilities_are_read():
    assert parse_floors(" digit_string = 0.9, reasoning/image=0.5,") == {"digit_string": 0.9, "reasoning/image": 0.5}
    assert parse_floors("wide_search=0.5") == {"wide_search": 0.5}  # the better of its two suites
    assert parse_floors("") == {}


def test_every_suite_and_its_ability_can_have_a_floor():
    for suite in SUITES.values():
        family = FAMILIES[suite.family]
        assert f"{family.ability}/{family.modality}" in evaluated_abilities()
        assert parse_floors(f"{suite.name}=1") == {suite.name: 1.0}


@pytest.mark.parametrize(
    ("floors", "told"),
    [
        ("digit_strin=0.9", "did you mean digit_string"),
        ("agentic/image=0.5", "'agentic/image' is not evaluated"),
        ("reasoning/imge=0.5", "did you mean reasoning/image"),
        ("digit_string", "write suite=value"),
        ("digit_string=high", "write suite=value"),
        ("digit_string:0.5", "write suite=value"),
        ("digit_string=nan", "from 0 to 1"),
        ("digit_string=80", "from 0 to 1"),
        ("digit_string=-0.1", "from 0 to 1"),
        ("photo=0.5,photo=0.6", "two floors"),
    ],
)
def test_a_wrong_floor_is_one_line_with_the_nearest_name(floors: str, told: str):
    with pytest.raises(MoonflowError) as caught:
        Config.parse({"floors": floors}, "mine.toml: [evaluate]")
    line = str(caught.value)
    assert "\n" not in line and "mine.toml: [evaluate]: parameter 'floors'" in line and told in line


@pytest.mark.parametrize(
    ("champion", "told"),
    [
        ("moonflow", "write MODEL@ALIAS"),
        ("@champion", "write MODEL@ALIAS"),
        ("moonflow@", "write MODEL@ALIAS"),
        ("moonflow@v3", "MLflow keeps the alias v3"),
        ("moonflow@Latest", "MLflow keeps the alias Latest"),
        ("moon/flow@champion", "a model's name"),
        ("moonflow@cham pion", "an alias has"),
    ],
)
def test_a_wrong_champion_is_one_line(champion: str, told: str):
    with pytest.raises(MoonflowError, match=told):
        Config.parse({"champion": champion}, "step evaluate")


def test_the_gates_rules_are_outside_of_the_scores_lineage():
    rules = {"floors": "photo=0.1", "champion": "", "margin": 0.5, "well_formed": 0.1, "sigmas": 1.0}
    assert Config(**rules).sha256 == Config().sha256
    assert Config(**rules).ending == rules
    assert Config(samples=2).sha256 != Config().sha256
