from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.boundary.errors import MoonflowError
from model.plan.figure import Figure
from model.plan.layout import LayoutConstraints, Workload
from pipelines.plan import Plan, readable
from tests.pipelines.commands import moonflow


def test_json_is_one_object_with_every_figure_its_formula_and_its_source(tmp_path: Path) -> None:
    result = moonflow("plan", "--preset", "k25", "--gpus", "512", "--json", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert [title.split(",")[0].split(":")[0] for title in document["figures"]] == [
        "parameters",
        "FLOPs",
        "activations",
        "memory of one GPU",
        "bytes one GPU sends in a step",
    ]
    for group in document["figures"].values():
        for figure in group:
            assert figure["formula"] and figure["source"] and figure["value"] >= 0
    parameters = {figure["name"]: figure["value"] for figure in document["figures"]["parameters"]}
    assert parameters["vision tower"] == pytest.approx(417e6, rel=1e-3)
    assert document["suggested"] in document["layouts"]
    assert list(tmp_path.iterdir()) == []


def test_tables_say_what_fits_and_what_is_suggested(tmp_path: Path) -> None:
    result = moonflow("plan", "--preset", "small", "--gpus", "8", cwd=tmp_path)
    assert result.returncode == 0
    assert "Suggested: ZeRO-" in result.stdout and "of 80 GiB" in result.stdout and "arXiv 1910.02054" in result.stdout


def test_a_shape_that_fits_nowhere_is_said_so(tmp_path: Path) -> None:
    result = moonflow("plan", "--gpus", "8", "--json", cwd=tmp_path)
    document = json.loads(result.stdout)
    assert document["suggested"] is None and document["verdict"].startswith("No layout fits")


def test_only_what_is_wanted_is_worked_out() -> None:
    plan = Plan.of("small", 8, Workload(), 80, LayoutConstraints(zero=2, experts=4, sequence=2))
    assert {(o.layout.zero, o.layout.experts, o.layout.sequence) for o in plan.options} == {(2, 4, 2)}


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(MoonflowError, match="small, tiny"):
        Plan.of("huge", 8, Workload(), 80, LayoutConstraints())


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1024**3, "B", "1 GiB"),
        (12, "B", "12 B"),
        (1.5 * 1024, "B", "1.5 KiB"),
        (416_900_000, "parameters", "416.9 M"),
        (32.86e9, "parameters", "32.86 B"),
        (2.06e11, "FLOP", "206 GFLOP"),
    ],
)
def test_values_are_read_with_a_prefix(value: float, unit: str, text: str) -> None:
    assert readable(Figure("", value, unit, "", "")) == text
