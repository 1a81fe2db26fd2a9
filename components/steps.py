"""The steps of the pipeline, in order. Everything that walks over steps (profiles, DAG, docs, summary) reads this."""

from __future__ import annotations

import importlib
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


def config_class(step: str) -> type[StepConfig]:
    """``components.<step>.config.Config``: the step's parameters with units and sources."""
    return importlib.import_module(f"components.{step}.config").Config
