"""The steps of the pipelines, in order. Everything that walks over steps (profiles, DAG, docs, summary) reads this."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING

from model.boundary.errors import MoonflowError
from model.data.order.mixtures import MIXTURES, mixtures
from model.data.order.shares import parse_shares
from model.evals.suites import SUITES
from model.rl.tasks.names import parse_tasks, short_name

if TYPE_CHECKING:
    from kfp.dsl.base_component import BaseComponent

    from components.runtime.config import StepConfig

STEPS = (
    "prepare_data",
    "vit_pretrain",
    "joint_pretrain",
    "mid_train",
    "zero_vision_sft",
    "visual_rl",
    "rejection_sft",
    "joint_rl",
    "parl",
    "evaluate",
    "promote",
    "serve",
    "finish",
)

TRAINING_STEPS = STEPS[1 : STEPS.index("evaluate")]
"""The steps of the recipe of which each trains a checkpoint."""

UNTRAINED = "init"
"""The name that evaluations give to the model before any training: random weights."""
IMPORTED = "import_checkpoint"
"""The step that brings in a checkpoint to start from, and the name that evaluations give to that checkpoint."""
STARTS = {UNTRAINED: "untrained", IMPORTED: "imported"}
"""The models that training can start from, and what tables call them."""

PIPELINES = {
    "k25": STEPS,
    "pretrain": (*STEPS[: STEPS.index("zero_vision_sft")], "evaluate", "finish"),
    "post_train": (IMPORTED, STEPS[0], *STEPS[STEPS.index("zero_vision_sft") :]),
    "visual_rl": (
        IMPORTED, STEPS[0], *STEPS[STEPS.index("zero_vision_sft") : STEPS.index("joint_rl")], "evaluate", "finish",
    ),
    "fusion_ablation": ("prepare_data", "fusion_arm", "finish"),
    "sft_ablation": (IMPORTED, "prepare_data", "sft_arm", "finish"),
    "toggle_ablation": (IMPORTED, "prepare_data", "zero_vision_sft", "toggle_arm", "finish"),
    "rl_ablation": (IMPORTED, "prepare_data", "rl_arm", "finish"),
    "swarm_ablation": (IMPORTED, "prepare_data", "swarm_start", "swarm_arm", "finish"),
}  # fmt: skip
"""The steps of each pipeline. A module of ``pipelines`` with that name has its DAG."""

ALL_STEPS = tuple(
    dict.fromkeys((IMPORTED, STEPS[0], *TRAINING_STEPS, *(step for steps in PIPELINES.values() for step in steps)))
)
"""Every step; those of any one pipeline are in its order."""


AGREE = (
    *(("prepare_data", step, "mixture") for step in (*STEPS[1:5], "rejection_sft", "sft_arm", "rl_arm", "swarm_start")),
    ("promote", "serve", "environment"),
    ("evaluate", "promote", "expert_precision"),
)
"""(step, later step, parameter): if the two values differed, the later step would refuse what the earlier one made, or
miss families that it reads."""


def disagreement(configs: Mapping[str, StepConfig]) -> str:
    """What is wrong between the parameters of steps, "" if nothing is."""
    for step, name in dict.fromkeys((step, name) for step, _, name in AGREE if step in configs):
        value = getattr(configs[step], name)
        later = [to for of, to, parameter in AGREE if (of, parameter) == (step, name) and to in configs]
        if others := [f"{to}.{name} is {other!r}" for to in later if (other := getattr(configs[to], name)) != value]:
            return f"{step}.{name} is {value!r}, but {', '.join(others)}: give them the same value"
    return _missing_source(configs) or _missing_family(configs)


def _missing_source(configs: Mapping[str, StepConfig]) -> str:
    """A source of zero_vision_sft that prepare_data is not given."""
    if not {"prepare_data", "zero_vision_sft"} <= configs.keys():
        return ""
    given = re.findall(r"(?:^|,)\s*(\w+)(?::[0-9.]+)?=", getattr(configs["prepare_data"], "sources", ""))
    for name in parse_shares(getattr(configs["zero_vision_sft"], "sources", "")):
        if name not in given:
            return (
                f"zero_vision_sft.sources names {name!r}, and prepare_data.sources has "
                f"{', '.join(given) or 'none'}: give it there too, as {name}=URI"
            )
    return ""


def _missing_family(configs: Mapping[str, StepConfig]) -> str:
    """A floor, a question of serve, an arm or a prompt for whose family prepare_data makes no samples."""
    if "prepare_data" not in configs:
        return ""
    mixture = getattr(configs["prepare_data"], "mixture", "")
    floors = re.findall(r"(?<![\w/])(\w+)\s*=", getattr(configs.get("evaluate"), "floors", ""))
    own = [short_name(name) for name in parse_tasks(getattr(configs.get("evaluate"), "tasks", ""))]
    asked = [
        ("evaluate.floors", name, SUITES[name].family if name in SUITES else name) for name in floors if name not in own
    ]
    if family := getattr(configs.get("serve"), "family", ""):
        asked.append(("serve.family", family, family))
    if "sft_arm" in configs:
        asked.append(("sft_arm", "narrow_program_image", "narrow_program_image"))
    if "toggle_arm" in configs:
        asked.append(("toggle_arm", "free_arithmetic", "free_arithmetic"))
    if families := getattr(configs.get("rl_arm"), "visual_families", ""):
        asked += [("rl_arm.visual_families", name, name) for name in families.split(",")]
    for step in {"parl", "swarm_arm"} & configs.keys():
        asked += [(f"{step}.families", name, name) for name in getattr(configs[step], "families", "").split(",")]
    for key, name, family in asked:
        if family not in mixtures(mixture).made:
            makers = [known for known, shares in MIXTURES.items() if family in shares.made]
            return (
                f"{key} names {name!r}, for which prepare_data.mixture {mixture!r} makes no samples: choose another, "
                f"or the mixture {' or '.join(makers)}"
            )
    return ""


# This is where the steps plug in: the runtime lies below them and imports none of them, so it finds the modules of a
# step by the name of the step. Of the other files only that which loads a user's tasks imports by a name in a string
# (tests/ci/test_imports.py).


def config_class(step: str) -> type[StepConfig]:
    """``components.<step>.config.Config``: the step's parameters with units and sources.

    MoonflowError if there is no such step.
    """
    name = f"components.{step}.config"
    try:
        found: type[StepConfig] = importlib.import_module(name).Config
    except ModuleNotFoundError as error:
        if error.name not in {name, f"components.{step}"}:
            raise
        raise MoonflowError(f"no step {step!r}: steps are the folders of components/ with a config.py") from None
    return found


def stage_of(step: str) -> ModuleType:
    """``components.<step>.stage``: its ``run`` does the step's work. Importing it loads what the step needs."""
    return importlib.import_module(f"components.{step}.stage")


def component_of(step: str) -> BaseComponent:
    """``components.<step>.component.<step>``: the step's KFP component."""
    return getattr(importlib.import_module(f"components.{step}.component"), step)


def in_order(tasks: Iterable[str]) -> list[str]:
    """The tasks of a run, each after those that it can follow; names that are no task's are left out."""
    known = (task for task in tasks if step_of(task) in ALL_STEPS)
    return sorted(known, key=lambda task: ALL_STEPS.index(step_of(task)))


def step_of(task: str) -> str:
    """The step of a task: its name without the arm and the seed of a step that the pipeline runs several times."""
    return task.partition("-")[0]
