"""What Kubeflow's UI shows of a component: its inputs, outputs and parameters with their descriptions and defaults.

KFP reads descriptions from the docstring (``Args:`` and ``Returns:``) and defaults from the signature. Both are made
here from the step's Config, so that nothing is written twice. The pod gets the function's source, without them: there
Kubeflow's launcher fills in the defaults of the compiled component (source: ``addDefaultParams`` in KFP's backend).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from kfp.dsl.types.type_annotations import is_artifact_wrapped_in_Output

from components.runtime.config import meaning
from components.runtime.steps import config_class

Function = TypeVar("Function", bound=Callable[..., Any])

ARGUMENTS = "Args:"
# The arguments of components besides their Config's fields. An input of another name is a checkpoint, named after its
# step.
_OTHERS = {
    "run_id": "name of the run in the object store and in MLflow, the same for all of its tasks; empty = the id of "
    "Kubeflow's run",
    "later": "the text parameters of all later steps, one step.name=value per line, to check before anything is "
    "trained; empty = none",
    "cell": "what the pipeline's loop tells apart its tasks by: an arm, a seed, or both, for example early-0",
    "status": "how the run ended; Kubeflow fills it in",
    "tasks": "names of the run's tasks, with commas between; arms of an ablation that are not among them are left out "
    "of the report; empty = all that are in the run's folder",
    "data": "manifest of the tokenizer and the shards that prepare_data wrote",
    "tokenizer": "manifest of the imported checkpoint that training starts from: its tokenizer and image settings are "
    "used; none = a tokenizer is trained",
    "parent": "manifest of the checkpoint that training starts from",
    "successes": "manifest of the checkpoint of RL, in which the successful episodes are that it kept",
    "policy": "manifest of the checkpoint that training starts from",
    "sub_agents": "manifest of the checkpoint of the frozen sub-agents",
    "checkpoint": "manifest of a checkpoint; its weights are in the object store",
    "evals": "manifest of the scores, with the gate's decision",
    "promotion": "manifest of the promotion: what was exported, registered and committed",
    "served": "manifest of the question and the answer",
    "metrics": "the numbers in the manifest",
    "card": "summary of the task: its MLflow run, its manifest and the inputs it used",
    "report": "the run's report, one HTML page",
    "Output": "the gate's decision: promote or hold",
}


def described(step: str) -> Callable[[Function], Function]:
    """Decorator to put below ``dsl.component``: adds what KFP shows, from the Config of ``step``.

    Each field's default becomes the default of the argument of that name. The docstring gets an ``Args:`` entry per
    input and parameter and a ``Returns:`` entry per output. Arguments that are not fields have no default and must
    come first, as Python requires; else ValueError.
    """

    def add(function: Function) -> Function:
        fields = config_class(step).model_fields
        signature = inspect.signature(function)
        parameters = [
            parameter.replace(default=fields[name].default) if name in fields else parameter
            for name, parameter in signature.parameters.items()
        ]
        inputs, outputs = list[str](), list[str]()
        for parameter in parameters:
            name = parameter.name
            text = (
                meaning(fields[name]) if name in fields else _OTHERS.get(name, f"manifest of the checkpoint of {name}")
            )
            (outputs if is_artifact_wrapped_in_Output(parameter.annotation) else inputs).append(f"    {name}: {text}")
        if signature.return_annotation is not inspect.Signature.empty:
            outputs.append(f"    Output: {_OTHERS['Output']}")
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        function.__doc__ = "\n".join([purpose(function), "", ARGUMENTS, *inputs, "", "Returns:", *outputs])
        return function

    return add


def purpose(function: Callable[..., Any]) -> str:
    """The docstring without the arguments."""
    return inspect.cleandoc(function.__doc__ or "").partition(f"\n\n{ARGUMENTS}")[0]
