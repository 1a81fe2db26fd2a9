"""Checks the text parameters of all steps when the first step starts.

A run that is started from Kubeflow's form was checked by the form only: a misspelt floor would be found hours later.
Only texts are sent to the first step. They are sent as one text, in which Kubeflow would format numbers in its own way.
The form checks that numbers are numbers, and each step checks their bounds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from components.runtime.steps import ALL_STEPS, config_class, disagreement
from model.boundary.errors import MoonflowError

_LINE = re.compile(rf"({'|'.join(ALL_STEPS)})\.(\w+)=(.*)")


def as_text(values: Iterable[tuple[str, str, Any]]) -> str:
    """Lines from (step, parameter, value); the value may be a placeholder that KFP fills in."""
    return "\n".join(f"{step}.{name}={value}" for step, name, value in values)


def check(text: str) -> None:
    """MoonflowError for the first parameter in ``as_text`` that its step would refuse."""
    values: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        if found := _LINE.fullmatch(line):
            values.setdefault(found[1], {})[found[2]] = found[3]
    configs = {step: config_class(step).parse(given, f"step {step}") for step, given in values.items()}
    if told := disagreement(configs):
        raise MoonflowError(told)
