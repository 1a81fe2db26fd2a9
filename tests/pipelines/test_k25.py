from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from components.runtime.config import meaning
from components.runtime.steps import ALL_STEPS, STEPS, component_of, config_class
from pipelines.compile import compile_kubernetes
from pipelines.dag import pipeline_parameters
from pipelines.profile import load_profile
from tests.pipelines import shipped
from tests.pipelines.shipped import documents, tasks_of


@pytest.fixture(scope="module")
def compiled() -> tuple[dict[str, Any], dict[str, Any]]:
    """(pipeline spec, platform spec) of the small profile, which asks for GPUs, pools and retries."""
    return shipped.compiled("small")


def test_one_task_a_step(compiled: tuple[dict[str, Any], dict[str, Any]]) -> None:
    assert set(tasks_of(compiled[0])) == set(STEPS)


def test_finish_runs_after_failure_too(compiled: tuple[dict[str, Any], dict[str, Any]]) -> None:
    finish = tasks_of(compiled[0])["finish"]
    assert finish["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert any("taskFinalStatus" in value for value in finish["inputs"]["parameters"].values())


def test_promotion_depends_on_the_gate(compiled: tuple[dict[str, Any], dict[str, Any]]) -> None:
    spec, _ = compiled
    gated = [
        spec["components"][task["componentRef"]["name"]]["dag"]["tasks"]
        for dag in (c["dag"] for c in spec["components"].values() if "dag" in c)
        for task in dag["tasks"].values()
        if "== 'promote'" in task.get("triggerPolicy", {}).get("condition", "")
    ]
    assert [set(tasks) for tasks in gated] == [{"promote", "serve"}]


def test_parameters_sort_by_phase_and_carry_the_profiles_values(
    compiled: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    profile = load_profile("small")
    parameters = pipeline_parameters(profile)
    phases = ["", *STEPS]
    order = [phases.index(p.step) for p in sorted(parameters, key=lambda p: p.name)]
    assert order == sorted(order)
    compiled_parameters = compiled[0]["root"]["inputDefinitions"]["parameters"]
    assert set(compiled_parameters) == {p.name for p in parameters}
    for parameter in parameters:
        assert compiled_parameters[parameter.name]["defaultValue"] == parameter.default
        assert compiled_parameters[parameter.name]["description"] == parameter.description.rstrip()
    for step in STEPS:
        fields = {p.field for p in parameters if p.step == step}
        assert fields == set(config_class(step).model_fields) - {"preset"}


@pytest.mark.parametrize("step", STEPS)
def test_component_arguments_are_the_config_fields(step: str) -> None:
    function = component_of(step).python_func  # type: ignore[attr-defined]
    given = ("run_id", "later", *(["tasks"] if step == "finish" else []))  # by the pipeline
    arguments = {
        name: parameter.annotation
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.annotation in (int, float, str, bool) and name not in given
    }
    assert arguments == {name: field.annotation for name, field in config_class(step).model_fields.items()}


@pytest.mark.parametrize("step", ALL_STEPS)
def test_a_component_tells_what_each_of_its_parameters_and_artifacts_means(step: str) -> None:
    component = component_of(step)
    spec, fields = component.component_spec, config_class(step).model_fields
    shown = {**(spec.inputs or {}), **(spec.outputs or {})}
    shown.pop("Output", None)  # of evaluate: the decision, which has no name
    for name, each in shown.items():
        told = " ".join((each.description or "").split())
        assert told == (meaning(fields[name]) if name in fields else told) and len(told) > 10, name
    for name, field in fields.items():
        if field.annotation in (int, float):
            assert re.search(r"\[(at least|more than) ", meaning(field)), f"{step}.{name} has no lower bound"
    assert "Args:" not in (spec.description or "")
    assert "described" not in "".join(spec.implementation.container.command or ()), "a pod has the bare function"


@pytest.mark.parametrize("step", ALL_STEPS)
def test_component_is_thin(step: str) -> None:
    function = component_of(step).python_func  # type: ignore[attr-defined]
    body = inspect.getsource(function).split('"""')[-1]
    assert len([line for line in body.splitlines() if line.strip()]) <= 15


def test_kubernetes_objects(tmp_path: Path) -> None:
    path = tmp_path / "objects.yaml"
    compile_kubernetes(load_profile("tiny"), path, "team-a", "0.1.0")
    pipeline, version = documents(path)
    assert (pipeline["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
    names = [(each["metadata"]["name"], each["metadata"]["namespace"]) for each in (pipeline, version)]
    assert names == [("moonflow-tiny", "team-a"), ("moonflow-tiny-0-1-0", "team-a")]
    assert version["spec"]["pipelineName"] == "moonflow-tiny"
