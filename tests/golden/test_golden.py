"""What users of the code depend on, as it was recorded: losses, weights, names and defaults.

A refactoring leaves all of it as it is. Where a change is intended, ``pytest tests -k golden --record-golden`` writes
the files anew, and the commit says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from model.network import precision
from pipelines.cli import app
from pipelines.dag import pipeline_parameters
from pipelines.profile import load_profile
from tests.golden.comparison import differences
from tests.golden.recipe import recipe_figures


def test_golden_recipe(golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of a run of seconds, in float32 and bfloat16, with images; RL samples on the embedded engine."""
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: True)  # also where the CPU does it slowly
    golden("recipe", recipe_figures(tmp_path))


def test_golden_commands(golden) -> None:
    golden("commands", dict(options(typer.main.get_command(app), [])))


@pytest.mark.parametrize("profile", ["tiny", "post_train", "fusion", "claims-sft", "claims-swarm"])
def test_golden_parameters_of_the_pipeline(golden, profile: str) -> None:
    parameters = pipeline_parameters(load_profile(profile))
    golden(f"parameters-{profile}", {parameter.name: parameter.default for parameter in parameters})


def options(command: Any, names: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Every command's name, and what may be given to it."""
    if hasattr(command, "commands"):
        for name, each in command.commands.items():
            yield from options(each, [*names, name])
    else:
        yield " ".join(names), sorted("/".join([*one.opts, *one.secondary_opts]) for one in command.params)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"loss": 2.0021, "keys": ["a"]}, "/loss: 2.0021 instead of 2"),
        ({"loss": 2.0, "keys": ["b"]}, "/keys/0: 'b' instead of 'a'"),
        ({"loss": 2.0, "keys": ["a", "b"]}, "/keys: "),
        ({"loss": 2.0}, "/keys: is gone"),
        ({"loss": 2.0, "keys": ["a"], "more": 1}, "/more: is new"),
        ({"loss": float("nan"), "keys": ["a"]}, "/loss: nan"),
    ],
)
def test_a_difference_is_told(found: dict, says: str) -> None:
    (told,) = differences(found, {"loss": 2.0, "keys": ["a"]}, rel=1e-3, near_zero=1e-6)
    assert told.startswith(says)
    assert not list(differences({"loss": 2.0019, "keys": ["a"]}, {"loss": 2.0, "keys": ["a"]}, 1e-3, 1e-6))
