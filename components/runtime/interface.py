"""What Kubeflow's UI says of a component's inputs, outputs and parameters: the docstring that KFP reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from kfp.dsl.types.type_annotations import is_artifact_wrapped_in_Output

from components.runtime.config import meaning
from components.steps import config_class

Function = TypeVar("Function", bound=Callable[..., Any])

ARGUMENTS = "Args:"
# What components have beside their parameters. An input of another name is the output of the task of that name.
_OTHERS = {
    "run_id": "the run in the object store and in MLflow; the same for all of its tasks",
    "later": "the texts among all steps' parameters, to be checked before anything is trained",
    "cell": "arm and seed, for example early-0",
    "status": "how the run ended, from Kubeflow",
    "data": "tokenizer and shards of prepare_data",
    "parent": "the checkpoint that training goes on from",
    "policy": "the checkpoint that training goes on from",
    "checkpoint": "a checkpoint's manifest; its weights are in the object store",
    "evals": "the scores' manifest, with the gate's decision",
    "promotion": "the promotion's manifest: what was exported, registered and committed",
    "served": "the manifest of what was asked and answered",
    "metrics": "the numbers of the manifest",
    "card": "the task in short: MLflow run, manifest, what it was made from",
    "report": "the run's report, one HTML page",
}


def described(step: str) -> Callable[[Function], Function]:
    """Decorator below ``dsl.component``: adds ``Args:`` for each parameter, by ``step``'s Config, and ``Returns:`` for
    each output to the docstring."""

    def add(function: Function) -> Function:
        fields = config_class(step).model_fields
        given, made = list[str](), list[str]()
        for name, parameter in inspect.signature(function).parameters.items():
            text = meaning(fields[name]) if name in fields else _OTHERS.get(name, f"the checkpoint of {name}")
            (made if is_artifact_wrapped_in_Output(parameter.annotation) else given).append(f"    {name}: {text}")
        function.__doc__ = "\n".join([purpose(function), "", ARGUMENTS, *given, "", "Returns:", *made])
        return function

    return add


def purpose(function: Callable[..., Any]) -> str:
    """The docstring without the arguments."""
    return inspect.cleandoc(function.__doc__ or "").partition(f"\n\n{ARGUMENTS}")[0]
