"""How a pipeline is built from a profile: its parameters from the steps' schemas, its tasks with their placement.

``pipelines.k25`` and its neighbours (``pipelines.compile.BUILDERS``) describe their DAGs in a function that gets a
``MakeTask``. The parameters, their descriptions and the run's id are made here, the same way for all pipelines.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.runtime.config import meaning
from components.runtime.kfp import later
from pipelines.placement import place
from pipelines.profile import Profile

AT_ONCE = 2  # tasks of a loop; kfp.local runs no more at a time either
MakeTask = Callable[..., dsl.PipelineTask]
"""(component, **inputs that are no pipeline parameters, such as artifacts or a loop's item) -> a task of the DAG."""


@dataclass(frozen=True)
class Parameter:
    """One pipeline parameter: a field of a step's Config under a name that sorts by phase."""

    name: str
    step: str
    field: str
    type: type
    default: Any
    description: str


def pipeline_parameters(profile: Profile) -> list[Parameter]:
    """The pipeline's parameters, ``p00_run_id`` first, with the profile's values as defaults."""
    parameters = [
        Parameter(
            "p00_run_id", "", "run_id", str, "", "run to continue; empty = a new run, named by Kubeflow's run id"
        ),
    ]
    if profile.run.preset:
        told = "the model's shape, a file's name in model/network/presets"
        parameters.append(Parameter("p00_preset", "", "preset", str, profile.run.preset, told))
    for phase, (step, config) in enumerate(profile.steps.items(), start=1):
        for name, field in type(config).model_fields.items():
            if name != "preset" and name not in config.looped:
                value = getattr(config, name)
                text = meaning(field)
                parameters.append(Parameter(f"p{phase:02d}_{step}_{name}", step, name, type(value), value, text))
    return parameters


def pipeline(profile: Profile, title: str, recipe: Callable[[MakeTask], None]) -> BaseComponent:
    """The pipeline whose tasks ``recipe`` makes; the profile's values are its parameters' defaults."""
    parameters = pipeline_parameters(profile)
    first = next(iter(profile.steps))

    def dag(*values: Any) -> None:
        given = dict(zip((p.name for p in parameters), values, strict=True))

        def task(component: Callable[..., dsl.PipelineTask], **others: Any) -> dsl.PipelineTask:
            """A task of the DAG with the parameters and the placement of its step."""
            step = component.name.replace("-", "_")  # type: ignore[attr-defined]
            arguments = {p.field: given[p.name] for p in parameters if p.step == step}
            if "preset" in type(profile.steps[step]).model_fields:
                arguments["preset"] = given["p00_preset"]
            if step == first:
                # The text holds placeholders of the parameters, which KFP, on a server or locally, fills in.
                texts = [(p.step, p.field, given[p.name]) for p in parameters if p.step and p.type is str]
                shaped = [name for name, config in profile.steps.items() if "preset" in type(config).model_fields]
                texts += [(name, "preset", given["p00_preset"]) for name in shaped]
                arguments["later"] = later.as_text(texts)
            if step == "finish":
                arguments["tasks"] = ",".join(profile.task_names)
            made = component(run_id=given["p00_run_id"], **arguments, **others)
            return place(made, step, profile.placement(step), profile.run.image, profile.run.retries)

        recipe(task)

    # KFP reads a pipeline's parameters from its signature and their descriptions from its docstring.
    dag.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(p.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=p.default, annotation=p.type)
            for p in parameters
        ]
    )
    dag.__doc__ = "\n".join([title, "", "Args:", *(f"    {p.name}: {p.description}" for p in parameters)])
    return dsl.pipeline(name=f"moonflow-{profile.run.name}", description=title)(dag)
