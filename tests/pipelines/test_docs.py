"""The generated READMEs: up to date, complete, and with examples that compile."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from kfp import compiler
from pydantic import Field

from components.finish.config import Config
from components.runtime.config import StepConfig
from components.runtime.steps import ALL_STEPS, component_of, config_class
from model.boundary.errors import MoonflowError
from pipelines.docs import component
from pipelines.docs.__main__ import stale
from pipelines.docs.component import COMPONENTS, render


def test_readmes_are_what_the_code_says() -> None:
    assert not stale(), "run: python -m pipelines.docs"


@pytest.mark.parametrize("step", ALL_STEPS)
def test_a_readme_lists_every_input_output_and_parameter(step: str) -> None:
    text = (COMPONENTS / step / "README.md").read_text()
    spec = component_of(step).component_spec
    for name in {**(spec.inputs or {}), **(spec.outputs or {})}:
        assert text.count(f"\n| `{name}` |") == 1, name


@pytest.mark.parametrize("step", ALL_STEPS)
def test_the_example_of_a_readme_compiles(step: str, tmp_path: Path) -> None:
    _, _, rest = (COMPONENTS / step / "README.md").read_text().partition("```python\n")
    names: dict[str, object] = {}
    exec(compile(rest.partition("```")[0], "README.md", "exec", dont_inherit=True), names)
    compiler.Compiler().compile(names["example"], str(tmp_path / "example.yaml"))
    spec, platform = yaml.safe_load_all((tmp_path / "example.yaml").read_text())
    task = spec["root"]["dag"]["tasks"][step.replace("_", "-")]
    given = set(task["inputs"].get("parameters", {})) & set(config_class(step).model_fields)
    assert given == set(), "parameters have their defaults"
    placed = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{step.replace('_', '-')}"]
    assert {"configMapAsEnv", "secretAsEnv"} <= set(placed), "the task knows the cluster's services"


def test_a_parameter_without_a_source_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unsourced(StepConfig):
        curve_points: int = Field(400, ge=2, description="points of a curve")

    assert "curve_points" in Config.model_fields
    monkeypatch.setattr(component, "config_class", lambda step: Unsourced)
    with pytest.raises(MoonflowError, match="finish.curve_points: end its description in config.py with its source"):
        render("finish")
