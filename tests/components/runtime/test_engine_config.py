from __future__ import annotations

from typing import Any

import pytest

from components.runtime.steps import config_class
from model.boundary.errors import MoonflowError

HERE = {"engine": "sglang", "endpoints": "http://a:1, http://b:2"}


@pytest.mark.parametrize("step", ["visual_rl", "joint_rl", "parl", "evaluate", "serve"])
def test_every_step_that_generates_takes_replicas(step: str) -> None:
    config = config_class(step).parse(HERE, step)
    assert config.lineage["engine"] == "sglang" and "endpoints" not in config.lineage


@pytest.mark.parametrize(
    ("step", "values", "said"),
    [
        ("joint_rl", {"engine": "sglang"}, "endpoints is empty: give the replicas' addresses"),
        ("joint_rl", {"endpoints": "http://a:1"}, "engine is 'embedded': set engine to 'sglang' too"),
        (
            "joint_rl",
            {**HERE, "endpoints": "a:1"},
            "endpoints: 'a:1' is not the address of a server: write http://HOST",
        ),
        ("joint_rl", {**HERE, "endpoints": "http://a"}, "is not the address of a server"),
        ("joint_rl", {**HERE, "endpoints": "http://a:x"}, "is not the address of a server"),
        ("joint_rl", {**HERE, "endpoints": "http://a:1,http://a:1/"}, "http://a:1 is listed twice"),
        ("joint_rl", {**HERE, "endpoints": "http://user@a:1"}, "leave user and password out"),
        ("joint_rl", {**HERE, "modalities": "video"}, "SGLang does not take for this model: use engine 'embedded'"),
        ("joint_rl", {**HERE, "weights_folder": "here"}, "weights_folder"),
        ("parl", {**HERE, "sub_agent_endpoints": "http://b:2"}, "http://b:2 is in endpoints and sub_agent_endpoints"),
        ("evaluate", {"sub_agent_endpoints": "http://b:2"}, "sub_agent_endpoints is given and engine is 'embedded'"),
        ("serve", {**HERE, "endpoint": "http://c"}, "endpoint and endpoints are both given"),
    ],
)
def test_what_does_not_fit_together_is_one_line(step: str, values: dict[str, Any], said: str) -> None:
    with pytest.raises(MoonflowError) as told:
        config_class(step).parse(values, f"step {step}")
    assert said in str(told.value) and "\n" not in str(told.value)
