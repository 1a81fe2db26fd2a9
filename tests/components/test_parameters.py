"""The parameters of all steps."""

from __future__ import annotations

from collections import Counter

from components.runtime.config import StepConfig
from components.runtime.steps import ALL_STEPS, config_class

LONG = 80
"""Characters of a description that no two steps have by chance."""


def test_a_parameter_that_several_steps_have_is_stated_once() -> None:
    schemas = {schema for step in ALL_STEPS for schema in config_class(step).mro() if issubclass(schema, StepConfig)}
    stated = Counter(
        (name, field.default, field.description or "")
        for schema in schemas
        for name in schema.__annotations__
        if (field := schema.model_fields.get(name)) is not None
    )
    assert [name for (name, _, told), times in stated.items() if times > 1 and len(told) > LONG] == []
