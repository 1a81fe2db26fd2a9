"""The steps of the pipelines, in order. Everything that walks over steps (profiles, DAG, docs, summary) reads this."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from components.runtime.config import StepConfig

STEPS = (
    "prepare_data",
    "vit_pretrain",
    "joint_pretrain",
    "mid_train",
    "zero_vision_sft",
    "joint_rl",
    "parl",
    "evaluate",
    "promote",
    "serve",
    "finish",
)

TRAINING_STEPS = STEPS[1:7]
"""The steps whose output is a checkpoint."""

PIPELINES = {"k25": STEPS, "fusion_ablation": ("prepare_data", "fusion_arm", "finish")}
"""The steps of each pipeline. A module of ``pipelines`` with that name has its DAG."""

ALL_STEPS = tuple(dict.fromkeys(step for steps in PIPELINES.values() for step in steps))


AGREE = (("promote", "serve", "environment"), ("evaluate", "promote", "expert_precision"))
"""(step, later step, parameter): where the two differ, the later one could only refuse what the earlier one made."""


def disagreement(configs: Mapping[str, StepConfig]) -> str:
    """What is wrong between the parameters of two steps, "" if nothing is."""
    for step, later, name in AGREE:
        if step in configs and later in configs:
            first, second = getattr(configs[step], name), getattr(configs[later], name)
            if first != second:
                return f"{step}.{name} is {first!r} and {later}.{name} is {second!r}: give both the same value"
    return ""


def config_class(step: str) -> type[StepConfig]:
    """``components.<step>.config.Config``: the step's parameters with units and sources."""
    return importlib.import_module(f"components.{step}.config").Config


def step_of(task: str) -> str:
    """The step of a task: its name without the arm and the seed of a step that the pipeline runs several times."""
    return task.partition("-")[0]
