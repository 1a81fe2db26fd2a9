"""A profile: one TOML file with all settings of a run, checked against the steps' schemas.

[run]                   name, pipeline, preset, image ...       -> RunSettings
[task] [task.<step>]    launcher, cpu, memory, pool, queue ...  -> Placement, the first one for all steps
[<step>]                the step's parameters                   -> components.<step>.config.Config
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from components.ablation.cells import arm_of
from components.runtime.config import EpisodesConfig, StepConfig, known_preset
from components.runtime.kfp.image import PIPELINE, TRAIN
from components.runtime.launcher.placement import Placement
from components.runtime.launcher.work import require_parallel
from components.runtime.steps import ALL_STEPS, PIPELINES, config_class, disagreement
from model.boundary.errors import MoonflowError
from model.boundary.untrusted_text import well_formed

PROFILES = Path(__file__).parent / "profiles"
RESOLVED = "profile.toml"
"""In a run's folder: the profile that it was begun or last continued with, with all its values."""
LONGEST_NAME = 48
"""Kubeflow labels pods with the workflow's name, ``moonflow-<name>-<five characters>``, and a label has 63 at most."""


class RunSettings(StepConfig):
    """Settings of the whole run."""

    name: str = Field(
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        max_length=LONGEST_NAME,
        description="name of the pipeline and of a local run",
    )
    pipeline: str = Field(
        "k25", pattern=f"^({'|'.join(PIPELINES)})$", description=f"the pipeline: {' or '.join(PIPELINES)}"
    )
    preset: Annotated[str, AfterValidator(lambda name: name and known_preset(name))] = Field(
        "",
        description="the model's shape, a file's name in model/network/presets; required, except in pipelines that "
        "start from a checkpoint, whose shape they have",
    )
    seeds: int = Field(3, ge=1, description="runs of each arm of an ablation; other pipelines have one run")
    first_seed: int = Field(
        0,
        ge=0,
        description="the seed of the first of these runs; the next has one more, so that a report can leave out "
        "seeds that settings were chosen with; it also leaves out, and names, other seeds that the run had before",
    )
    arms: str = Field(
        "", description="arms of an ablation to run, with commas and no blanks between; empty = all of them"
    )
    image: str = Field(PIPELINE, min_length=1, description="container image of the tasks; ignored in a local run")
    train_image: str = Field(
        TRAIN,
        min_length=1,
        description="container image of the tasks that ask for accelerators; ignored in a local run",
    )
    retries: int = Field(
        0,
        ge=0,
        description="further attempts of a failed task; a local run waits 60 s or more before each. On a cluster only "
        "lost pods are tried again, unless its Argo has the retryPolicy OnFailure or Always; a step itself waits for a "
        "service that is down",
    )

    @property
    def every_seed(self) -> range:
        """The seeds of an ablation's arms."""
        return range(self.first_seed, self.first_seed + self.seeds)


@dataclass(frozen=True)
class Profile:
    """A resolved profile: the defaults, changed by the file, changed by the overrides."""

    source: str
    run: RunSettings
    tasks: dict[str, Placement]
    steps: dict[str, StepConfig]

    def placement(self, step: str) -> Placement:
        """Where ``step`` runs. Without an image of its own it gets ``run.train_image`` or ``run.image``."""
        asked = self.tasks[step]
        shared = self.run.train_image if asked.accelerators else self.run.image
        return asked.model_copy(update={"image": asked.image or shared})

    def step(self, name: str) -> StepConfig:
        """The parameters of a step. MoonflowError if the profile's pipeline has no such step."""
        if name not in self.steps:
            raise _no_step(self.source, self.run.pipeline, name)
        return self.steps[name]

    @property
    def task_names(self) -> list[str]:
        """The tasks of a run in order: a step's name, or a name per arm and seed for a step that runs several times."""
        names = []
        for step, config in self.steps.items():
            names += [f"{step}-{cell}" for cell in self.cells(step)] if config.looped else [step]
        return names

    def cells(self, step: str) -> list[str]:
        """The tasks of a step that runs several times, as the pipeline's loop names them: those of the chosen arms."""
        config, chosen = self.steps[step], self.run.arms.split(",")
        every = config.cells(self.run.every_seed)
        return [cell for cell in every if not self.run.arms or "arm" not in config.looped or arm_of(cell) in chosen]

    def require_parallel(self) -> None:
        """Raise MoonflowError for steps with more ranks than they can use, before hours of work are lost."""
        require_parallel({step: placement.ranks for step, placement in self.tasks.items()})
        for step, config in self.steps.items():
            placement, values = self.tasks[step], config.model_dump()
            data_ranks = placement.ranks // placement.sequence_parallel
            key = "ptx_rows" if values.get("ptx_weight") else "rows"
            if (rows := values.get(key, 0)) % data_ranks:
                raise MoonflowError(
                    f"{step}.{key} = {rows} does not divide among the {data_ranks} data ranks of [task.{step}] "
                    "(nodes x processes / sequence_parallel): choose a multiple"
                )

    @property
    def programs_beside_a_token(self) -> list[str]:
        """A line per step whose model-written programs would run in a pod with a Kubernetes token: what to set.

        KFP and Argo need the token in the step's own pod, and KFP has no setting that leaves it out. A TrainJob's pods
        have none.
        """
        return [
            f"{step} runs programs that a model writes, in a pod that has the token of moonflow-step: add --set "
            f"task.{step}.launcher=trainjob, or set it in the profile"
            for step, config in self.steps.items()
            if isinstance(config, EpisodesConfig) and self.tasks[step].launcher != "trainjob"
        ]

    def as_toml(self) -> str:
        """The profile with all its values, as the text of a file that loads to the same profile."""
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

    Raises MoonflowError, which names the file (and --set, if there are overrides), the key and the nearest valid key.
    """
    path = Path(name) if name.endswith(".toml") else PROFILES / f"{name}.toml"
    if not _exists(path):
        known = sorted(p.stem for p in PROFILES.glob("*.toml"))
        there = ", ".join(known)
        raise MoonflowError(f"profile {name!r} not found{_nearest(name, known)}; known: {there}; or give a .toml file")
    tables = _read(path)
    for override in overrides:
        _apply_override(tables, override)
    return _resolve(tables, f"{path} with --set" if overrides else str(path))


def step_of_run(run_dir: Path, step: str) -> StepConfig:
    """The parameters of a step of a run, from the profile in its folder, as ``find_step_of_run`` reads it.

    Raises MoonflowError if the run has no such step.
    """
    if (found := find_step_of_run(run_dir, step)) is None:
        path = run_dir / RESOLVED
        run = _read(path).get("run")
        raise _no_step(str(path), str(run.get("pipeline") if isinstance(run, dict) else None), step)
    return found


def find_step_of_run(run_dir: Path, step: str) -> StepConfig | None:
    """``step_of_run``, or None if the run has no such step.

    Only that step's table is checked: a run stays readable when later versions give other steps other parameters.
    """
    path = run_dir / RESOLVED
    table = _read(path).get(step)
    return config_class(step).parse(table, f"{path}: [{step}]") if isinstance(table, dict) else None


def require_same_steps(profile: Profile, run_dir: Path) -> None:
    """Raise MoonflowError if the run in a folder was begun with other steps, for example by an earlier version."""
    before = set(_read(run_dir / RESOLVED)) - {"run", "task"}
    missing = [step for step in profile.steps if step not in before]
    extra = sorted(before - set(profile.steps))
    told = [f"{word} {', '.join(steps)}" for word, steps in (("without", missing), ("with", extra)) if steps]
    if told:
        raise MoonflowError(
            f"{run_dir} was begun with a pipeline of other steps ({'; '.join(told)}): give another --run-dir"
        )


def _no_step(source: str, pipeline: str, step: str) -> MoonflowError:
    others = " or ".join(name for name, steps in PIPELINES.items() if step in steps)
    return MoonflowError(f"{source}: pipeline {pipeline} has no step {step}; give a run of {others}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise MoonflowError(f"profile {path}: {error.strerror}: give another .toml file") from None


def _read(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. MoonflowError if it is not one."""
    try:
        # utf-8-sig: editors on Windows put a byte order mark first.
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
            raise MoonflowError(f"{source}: {name} must be a table: write [{name}]")
    run = RunSettings.parse(tables.get("run", {}), f"{source}: [run]")
    names = PIPELINES[run.pipeline]
    _check_keys(source, "", tables, ["run", "task", *names])

    tasks_table = tables.get("task", {})
    _check_keys(source, "task.", tasks_table, [*Placement.model_fields, *names])
    for step in names:
        if not isinstance(tasks_table.get(step, {}), dict):
            raise MoonflowError(f"{source}: task.{step} must be a table: write [task.{step}]")
    shared = {key: value for key, value in tasks_table.items() if key not in names}
    tasks = {step: _placement(shared | tasks_table.get(step, {}), step, f"{source}: [task.{step}]") for step in names}

    _check_preset(source, run)
    steps = {}
    for step in names:
        schema = config_class(step)
        values = dict(tables.get(step, {}))
        if "preset" in schema.model_fields and values.setdefault("preset", run.preset) != run.preset:
            raise MoonflowError(f"{source}: {step}.preset differs from run.preset; set run.preset only")
        if given := [name for name in schema.looped if name in values]:
            raise MoonflowError(f"{source}: {step}.{given[0]}: the pipeline runs every value; leave it out")
        steps[step] = schema.parse(values, f"{source}: [{step}]")
    _check_arms(source, run, steps)
    if told := disagreement(steps):
        raise MoonflowError(f"{source}: {told}")
    return Profile(source, run, tasks, steps)


def _check_arms(source: str, run: RunSettings, steps: Mapping[str, StepConfig]) -> None:
    """MoonflowError if an arm is chosen that the pipeline does not have."""
    known = [
        arm_of(cell) for config in steps.values() if "arm" in config.looped for cell in config.cells(run.every_seed)
    ]
    for arm in filter(None, run.arms.split(",") if run.arms else ()):
        if arm not in known:
            there = f"choose from {', '.join(dict.fromkeys(known))}" if known else "leave arms out"
            told = f"{run.pipeline} has no arm {arm!r}{_nearest(arm, known)}; {there}"
            raise MoonflowError(f"{source}: [run]: parameter 'arms': {told}")
    chosen = run.arms.split(",")
    for config in steps.values():
        for arm in chosen:
            if missing := [need for need in config.needs.get(arm, ()) if need not in chosen]:
                raise MoonflowError(
                    f"{source}: [run]: parameter 'arms': {arm} begins after {' and '.join(missing)}: name that too"
                )


def _check_preset(source: str, run: RunSettings) -> None:
    """MoonflowError if the pipeline's first weights need a shape and none is given, or the other way round."""
    shaped = any("preset" in config_class(step).model_fields for step in PIPELINES[run.pipeline])
    if shaped and not run.preset:
        raise MoonflowError(f"{source}: [run]: parameter 'preset' is missing: {run.pipeline} needs the model's shape")
    if run.preset and not shaped:
        raise MoonflowError(
            f"{source}: [run]: parameter 'preset': {run.pipeline} has the shape of its checkpoint; leave preset out"
        )


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
    if well_formed(override) != override:  # else the resolved profile could not be written
        raise MoonflowError(f"--set {override!r} is not UTF-8: rename the file or folder that it names")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        value = text  # a word without quotes is a string
    if isinstance(value, int | float) and not isinstance(value, bool) and _takes_text(parts):
        value = text.strip()  # 2, 1.10 and 12e5678 are texts too
    table = tables
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise MoonflowError(f"--set {override}: {part} is a value, not a table")
    table[parts[-1]] = value


def _takes_text(parts: Sequence[str]) -> bool:
    """Whether the parameter of an override is a text, which may look like a number: cpu=2, revision=1.10."""
    step = parts[0].strip()
    known: dict[str, type[StepConfig]] = {"run": RunSettings, "task": Placement}
    model = known.get(step) or (config_class(step) if step in ALL_STEPS else None)
    field = model.model_fields.get(parts[-1].strip()) if model else None
    return field is not None and field.annotation is str


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # TOML has JSON's escapes; only DEL, which JSON does not escape, needs one.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
