"""The README of a component: what it is, its inputs, parameters and outputs, an example, its metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from kfp.dsl.structures import InputSpec
from pydantic.fields import FieldInfo

from components.runtime.config import bounds
from components.runtime.kfp.interface import purpose
from components.runtime.steps import STEPS, component_of, config_class
from model.boundary.errors import MoonflowError
from pipelines.docs.markdown import cell, table

COMPONENTS = Path(__file__).resolve().parents[2] / "components"
WRITTEN_BY = "<!-- Written by `python -m pipelines.docs`; edit config.py, component.py or metadata.yaml instead. -->"
STATUS = "PipelineTaskFinalStatus"
"""Type of the input that Kubeflow fills in for the task of an exit handler."""
_SOURCE = re.compile(r"(.*) \(source: (.*)\)")

ONE_OF = {"evaluate": "parl"}
"""Step -> one of its optional inputs, for a step that needs at least one of them."""


def render(step: str) -> str:
    """The README of one step as Markdown. MoonflowError for a parameter whose description names no source."""
    component = component_of(step)
    inputs, outputs = component.component_spec.inputs or {}, component.component_spec.outputs or {}
    fields = config_class(step).model_fields
    given = [[f"`{n}`", _input(i), cell(i.description)] for n, i in inputs.items() if n not in fields]
    made = [[f"`{n}`", _short(o.type), cell(o.description)] for n, o in outputs.items()]
    parameters = [_parameter(step, name, field) for name, field in fields.items() if name in inputs]
    parts = [
        WRITTEN_BY,
        f"# {step}",
        purpose(component.python_func),  # type: ignore[attr-defined]
        "The recipe is in [stage.py](stage.py).",
        "## Inputs",
        table(["input", "type", "meaning"], given),
        "## Parameters",
        table(["parameter", "type", "default", "meaning", "bounds", "source"], parameters),
        "## Outputs",
        table(["output", "type", "meaning"], made),
        "## Usage",
        "In a pipeline of your own. `place` gives the task its image, its resources, and the addresses and keys of the "
        "cluster's services.",
        f"```python\n{_example(step, inputs)}\n```",
        "## Metadata",
        _metadata(yaml.safe_load((COMPONENTS / step / "metadata.yaml").read_text())),
    ]
    return "\n\n".join(parts) + "\n"


def _parameter(step: str, name: str, field: FieldInfo) -> list[str]:
    found = _SOURCE.fullmatch(" ".join((field.description or "").split()))
    if not found:
        raise MoonflowError(f"{step}.{name}: end its description in config.py with its source: (source: ...)")
    kind = getattr(field.annotation, "__name__", str(field.annotation))
    default = "required" if field.is_required() else f"`{field.default}`" if field.default != "" else "empty"
    return [f"`{name}`", kind, default, cell(found[1]), bounds(field), cell(found[2])]


def _input(given: InputSpec) -> str:
    return _short(given.type) + (", optional" if given.optional and _is_artifact(given) else "")


def _is_artifact(given: InputSpec) -> bool:
    return "@" in str(given.type)


def _example(step: str, inputs: Mapping[str, InputSpec]) -> str:
    """A pipeline of one task. Its inputs are artifacts of other tasks, its parameters have their defaults; what is
    optional is left out."""
    needed = [name for name, given in inputs.items() if not given.optional or name == ONE_OF.get(step)]
    artifacts = [name for name in needed if _is_artifact(inputs[name])]
    others = [name for name, given in inputs.items() if not given.optional and name not in (*artifacts, "run_id")]
    interface = [f"{name}: dsl.Input[dsl.{_short(inputs[name].type)}]" for name in artifacts]
    interface += [*(f"{name}: str" for name in others), 'run_id: str = ""']
    used, body = [step], _task("task", step, ["run_id", *others, *artifacts])
    if any(given.type == STATUS for given in inputs.values()):  # an exit handler, which needs a task to wait for
        first = STEPS[0]
        used = sorted([step, first])
        body = [*_task("last", step, ["run_id"]), "with dsl.ExitHandler(last):"]
        body += [f"    {line}" for line in _task("task", first, ["run_id"])]
    lines = ["from kfp import dsl", ""]
    lines += [f"from components.{name}.component import {name}" for name in used]
    lines += ["from components.runtime.kfp.image import PIPELINE"]
    lines += ["from components.runtime.launcher.placement import Placement", "from pipelines.placement import place"]
    lines += ["", "", f'@dsl.pipeline(name="{step.replace("_", "-")}")', *_call("def example", interface, ":")]
    return "\n".join([*lines, *(f"    {line}" for line in body)])


def _task(variable: str, step: str, arguments: Sequence[str]) -> list[str]:
    return [
        *_call(f"{variable} = {step}", [f"{name}={name}" for name in arguments], ""),
        f'place({variable}, "{step}", Placement(image=PIPELINE), image=PIPELINE, retries=2)',
    ]


def _call(head: str, arguments: Sequence[str], tail: str) -> list[str]:
    line = f"{head}({', '.join(arguments)}){tail}"
    return [line] if len(line) <= 100 else [f"{head}(", *(f"    {each}," for each in arguments), f"){tail}"]


def _metadata(metadata: dict[str, Any]) -> str:
    needed = metadata["dependencies"]
    return table(["", ""], [
        ["stability", metadata["stability"]],
        ["Kubeflow", ", ".join(f"{each['name']} {each['version']}" for each in needed["kubeflow"])],
        ["other services", ", ".join(f"{each['name']} {each['version']}" for each in needed["external_services"])],
        ["tags", ", ".join(metadata["tags"])],
        ["last verified", f"{metadata['lastVerified']:%Y-%m-%d}"],
    ])  # fmt: skip


def _short(kind: object) -> str:
    return str(kind).removeprefix("system.").split("@")[0]
