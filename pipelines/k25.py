"""The K2.5 recipe as one DAG. The same pipeline compiles for a cluster and runs under kfp.local.

prepare_data -> vit_pretrain -> joint_pretrain -> mid_train -> zero_vision_sft -> joint_rl -> parl
             -> evaluate -> (gate) -> promote -> serve          finish: always, whatever happened before
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.evaluate.component import evaluate
from components.finish.component import finish
from components.joint_pretrain.component import joint_pretrain
from components.joint_rl.component import joint_rl
from components.mid_train.component import mid_train
from components.parl.component import parl
from components.prepare_data.component import prepare_data
from components.promote.component import promote
from components.serve.component import serve
from components.steps import STEPS
from components.vit_pretrain.component import vit_pretrain
from components.zero_vision_sft.component import zero_vision_sft
from pipelines.placement import place
from pipelines.profile import Profile


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
    """Every parameter of the pipeline, ``p00_run_id`` first, with the profile's values as defaults."""
    parameters = [
        Parameter("p00_run_id", "", "run_id", str, "", "run to continue; empty = a new run named by Kubeflow's run id"),
        Parameter("p00_preset", "", "preset", str, profile.run.preset, "the model's shape, a file in model/presets"),
    ]
    for phase, step in enumerate(STEPS, start=1):
        config = profile.steps[step]
        for name, field in type(config).model_fields.items():
            if name != "preset":
                value = getattr(config, name)
                text = field.description or name
                parameters.append(Parameter(f"p{phase:02d}_{step}_{name}", step, name, type(value), value, text))
    return parameters


def k25(profile: Profile) -> BaseComponent:
    """Build the pipeline for a profile: its values become the parameters' defaults, its task table the placement."""
    parameters = pipeline_parameters(profile)

    def recipe(*values: Any) -> None:
        given = dict(zip((p.name for p in parameters), values, strict=True))

        def task(component: Callable[..., dsl.PipelineTask], **artifacts: Any) -> dsl.PipelineTask:
            """One task of the DAG: its parameters and its placement, both by the step's name."""
            step = component.name.replace("-", "_")  # type: ignore[attr-defined]
            arguments = {p.field: given[p.name] for p in parameters if p.step == step}
            if "preset" in type(profile.steps[step]).model_fields:
                arguments["preset"] = given["p00_preset"]
            made = component(run_id=given["p00_run_id"], **arguments, **artifacts)
            return place(made, step, profile.placement(step), profile.run.image, profile.run.retries)

        with dsl.ExitHandler(task(finish), name="recipe"):
            data = task(prepare_data).outputs["data"]
            vit = task(vit_pretrain, data=data).outputs["checkpoint"]
            joint = task(joint_pretrain, data=data, parent=vit).outputs["checkpoint"]
            mid = task(mid_train, data=data, parent=joint).outputs["checkpoint"]
            sft = task(zero_vision_sft, data=data, parent=mid).outputs["checkpoint"]
            rl = task(joint_rl, data=data, parent=sft).outputs["checkpoint"]
            swarm = task(parl, data=data, policy=rl, sub_agents=sft).outputs["checkpoint"]
            evals = task(
                evaluate,
                data=data,
                vit_pretrain=vit,
                joint_pretrain=joint,
                mid_train=mid,
                zero_vision_sft=sft,
                joint_rl=rl,
                parl=swarm,
            )
            # kfp.local finds a condition's operand only under the name that a plain `-> str` gets.
            decision = evals.outputs["Output"]
            with dsl.If(decision == "promote", name="gate"):
                promotion = task(promote, checkpoint=swarm, evals=evals.outputs["evals"])
                task(serve, data=data, promotion=promotion.outputs["promotion"])

    # KFP reads a pipeline's interface with inspect.signature and its descriptions from the docstring.
    recipe.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(p.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=p.default, annotation=p.type)
            for p in parameters
        ]
    )
    title = f"Train, evaluate, promote and serve by the K2.5 recipe ({profile.run.name})."
    recipe.__doc__ = "\n".join([title, "", "Args:", *(f"    {p.name}: {p.description}" for p in parameters)])
    return dsl.pipeline(name=f"moonflow-{profile.run.name}", description=title)(recipe)
