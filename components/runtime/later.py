"""The texts among the parameters of all steps, checked when the first step starts.

A run that is started from Kubeflow's form has met no other check than the form's: a misspelt floor would be told hours
later. Only texts are sent to the first step, because Kubeflow writes numbers into a text in a form of its own. The form
checks that they are numbers, and each step their bounds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from components.steps import ALL_STEPS, config_class, disagreement
from model.errors import MoonflowError

_LINE = re.compile(rf"({'|'.join(ALL_STEPS)})\.(\w+)=(.*)")


def as_text(values: Iterable[tuple[str, str, Any]]) -> str:
    """(step, parameter, its value or what KFP puts the value in the place of) as lines."""
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
