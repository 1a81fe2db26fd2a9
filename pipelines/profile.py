"""A profile: one TOML file with everything a run needs to know, checked against the steps' own schemas.

[run]                   name, preset, image, retries ...        -> RunSettings
[task] [task.<step>]    launcher, cpu, memory, pool, queue ...  -> Placement, the first one for all steps
[<step>]                the step's parameters                   -> components.<step>.config.Config
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from components.fusion_arm.arms import cells
from components.runtime.config import Preset, StepConfig
from components.runtime.image import PIPELINE, TRAIN
from components.runtime.launcher.placement import Placement
from components.runtime.launcher.work import require_parallel
from components.steps import ALL_STEPS, PIPELINES, config_class, disagreement
from model.errors import MoonflowError
from model.foreign_text import well_formed

PROFILES = Path(__file__).parent / "profiles"
LONGEST_NAME = 48
"""Kubeflow calls a run's workflow ``moonflow-<name>-<five characters>`` and labels pods with that: 63 characters."""


class RunSettings(StepConfig):
    """What concerns the whole run."""

    name: str = Field(
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        max_length=LONGEST_NAME,
        description="names the pipeline and a local run",
    )
    pipeline: str = Field(
        "k25", pattern=f"^({'|'.join(PIPELINES)})$", description=f"which pipeline: {' or '.join(PIPELINES)}"
    )
    preset: Preset = Field(description="the model's shape: a file in model/presets")
    seeds: int = Field(3, ge=1, description="runs of each arm of fusion_ablation, seeded 0, 1, ...; k25 has one run")
    image: str = Field(PIPELINE, min_length=1, description="container image of the tasks; ignored in a local run")
    train_image: str = Field(
        TRAIN,
        min_length=1,
        description="container image of the tasks that ask for accelerators; ignored in a local run",
    )
    retries: int = Field(
        0,
        ge=0,
        description="further attempts of a failed task; a local run waits 60 s and more for each. On a cluster they "
        "are for lost pods only, unless its Argo has the retryPolicy OnFailure or Always; a step waits for an absent "
        "service by itself",
    )


@dataclass(frozen=True)
class Profile:
    """A resolved profile: defaults, file and overrides taken together."""

    source: str
    run: RunSettings
    tasks: dict[str, Placement]
    steps: dict[str, StepConfig]

    def placement(self, step: str) -> Placement:
        """Where ``step`` runs, with an image: its own, or the run's for what it asks for."""
        asked = self.tasks[step]
        shared = self.run.train_image if asked.accelerators else self.run.image
        return asked.model_copy(update={"image": asked.image or shared})

    def step(self, name: str) -> StepConfig:
        """The parameters of a step; MoonflowError where the profile's pipeline has none of that name."""
        if name not in self.steps:
            raise MoonflowError(f"{self.source}: pipeline {self.run.pipeline} has no step {name}; give a run of k25")
        return self.steps[name]

    @property
    def task_names(self) -> list[str]:
        """The tasks of a run in order: a step's name, or several for a step that the pipeline runs several times."""
        names = []
        for step, config in self.steps.items():
            names += [f"{step}-{cell}" for cell in cells(self.run.seeds)] if config.looped else [step]
        return names

    def require_parallel(self) -> None:
        """MoonflowError naming the steps whose ranks their launcher would refuse, hours into the run."""
        require_parallel({step: placement.ranks for step, placement in self.tasks.items()})

    def as_toml(self) -> str:
        """The profile with every value said, as a file that loads to the same profile."""
        tables: list[tuple[str, StepConfig]] = [("run", self.run)]
        tables += [(f"task.{step}", settings) for step, settings in self.tasks.items()]
        tables += list(self.steps.items())
        blocks = []
        for name, model in tables:
            values = model.model_dump(exclude=set(model.looped))
            lines = [f"{key} = {_toml_value(value)}" for key, value in values.items()]
            blocks.append("\n".join([f"[{name}]", *lines]))
        return "\n\n".join(blocks) + "\n"


def load_profile(name: str, overrides: Sequence[str] = ()) -> Profile:
    """Read a profile by name (``tiny``) or path (``my.toml``) and apply overrides such as ``joint_pretrain.steps=10``.

    Raises MoonflowError naming the file, the key and the nearest valid key.
    """
    path = Path(name) if name.endswith(".toml") else PROFILES / f"{name}.toml"
    if not _exists(path):
        known = sorted(p.stem for p in PROFILES.glob("*.toml"))
        there = ", ".join(known)
        raise MoonflowError(
            f"profile {name!r} not found{_nearest(name, known)}; there are {there}; or give a .toml file"
        )
    tables = _read(path)
    for override in overrides:
        _apply_override(tables, override)
    return _resolve(tables, str(path))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise MoonflowError(f"profile {path}: {error.strerror}: give another .toml file") from None


def _read(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; MoonflowError for what is no such file."""
    try:
        # As editors on Windows save it too: with a mark of the byte order, with CRLF.
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise MoonflowError(f"profile {path} cannot be read: {error.strerror}; give a .toml file") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise MoonflowError(f"{path}: line {line} is not UTF-8: save the file as UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise MoonflowError(f"{path}: not valid TOML: {error}") from None


def _resolve(tables: dict[str, Any], source: str) -> Profile:
    for name, table in tables.items():
        if not isinstance(table, dict) and name in ("run", "task", *ALL_STEPS):
            raise MoonflowError(f"{source}: {name} is a table: write [{name}]")
    run = RunSettings.parse(tables.get("run", {}), f"{source}: [run]")
    names = PIPELINES[run.pipeline]
    _check_keys(source, "", tables, ["run", "task", *names])

    tasks_table = tables.get("task", {})
    _check_keys(source, "task.", tasks_table, [*Placement.model_fields, *names])
    for step in names:
        if not isinstance(tasks_table.get(step, {}), dict):
            raise MoonflowError(f"{source}: task.{step} is a table: write [task.{step}]")
    shared = {key: value for key, value in tasks_table.items() if key not in names}
    tasks = {step: _placement(shared | tasks_table.get(step, {}), step, f"{source}: [task.{step}]") for step in names}

    steps = {}
    for step in names:
        schema = config_class(step)
        values = dict(tables.get(step, {}))
        if "preset" in schema.model_fields and values.setdefault("preset", run.preset) != run.preset:
            raise MoonflowError(f"{source}: {step}.preset differs from run.preset; set run.preset only")
        if given := [name for name in schema.looped if name in values]:
            raise MoonflowError(f"{source}: {step}.{given[0]}: the pipeline runs all of them; leave it out")
        steps[step] = schema.parse(values, f"{source}: [{step}]")
    if told := disagreement(steps):
        raise MoonflowError(f"{source}: {told}")
    return Profile(source, run, tasks, steps)


def _placement(values: dict[str, Any], step: str, where: str) -> Placement:
    placement = Placement.parse(values, where)
    if placement.launcher != "in-process" and step == "finish":
        raise MoonflowError(
            f'{where}: launcher = "{placement.launcher}": finish runs in its own pod; leave launcher out'
        )
    return placement


def _check_keys(source: str, prefix: str, values: Iterable[str], valid: Iterable[str]) -> None:
    valid = list(valid)
    for key in values:
        if key not in valid:
            raise MoonflowError(f"{source}: unknown key {prefix}{key}{_nearest(key, valid)}; valid: {', '.join(valid)}")


def _nearest(key: str, valid: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, valid, n=1, cutoff=0.4)
    return f", did you mean {close[0]}?" if close else ""


def _apply_override(tables: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or len(parts) < 2:
        raise MoonflowError(f"--set {override}: write STEP.KEY=VALUE, for example joint_pretrain.steps=10")
    if well_formed(override) != override:  # the resolved profile could not be written
        raise MoonflowError(f"--set {override!r} is not UTF-8: rename what it names")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        value = text  # a bare word is a string
    table = tables
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise MoonflowError(f"--set {override}: {part} is a value, not a table")
    table[parts[-1]] = value


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for the one character that JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
