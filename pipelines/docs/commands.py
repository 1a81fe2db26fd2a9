"""The README of pipelines/: the pipelines, the commands, the profiles and what can be set in a profile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from components.runtime.config import StepConfig, bounds
from components.runtime.launcher.placement import Placement
from components.runtime.steps import PIPELINES
from pipelines import (
    fusion_ablation,
    k25,
    post_train,
    pretrain,
    rl_ablation,
    sft_ablation,
    swarm_ablation,
    toggle_ablation,
    visual_rl,
)  # fmt: skip
from pipelines.cli import app
from pipelines.docs import engines, start
from pipelines.docs.markdown import cell, table
from pipelines.profile import PROFILES, RunSettings, load_profile

WRITTEN_BY = "<!-- Written by `python -m pipelines.docs`; edit the code or the profiles instead. -->"
DAGS = {
    "k25": k25,
    "pretrain": pretrain,
    "post_train": post_train,
    "visual_rl": visual_rl,
    "fusion_ablation": fusion_ablation,
    "sft_ablation": sft_ablation,
    "rl_ablation": rl_ablation,
    "swarm_ablation": swarm_ablation,
    "toggle_ablation": toggle_ablation,
}
INTRODUCTION = """\
Pipelines are built from profiles. A profile names a pipeline and a model shape, sets the steps' parameters, and says
where each step runs. The same pipeline runs on this machine (`moonflow run`) and on Kubeflow (`moonflow submit`)."""
SEEDS = """\
One run says little about a recipe: with other seeds a suite moves by 0.1 and more. `moonflow seeds --profile tiny
--seeds 5` runs a profile five times, one run after the other, and prints for each suite the score of the best
constant answer, the mean, the sample standard deviation, the worst score and its run, then how often the gate
promoted (or passed, where a pipeline promotes nothing) and the seconds per run.

- In run number i, the seed of every step is the profile's plus 1000 * i, from i = 1; those of the training data, the
  tokenizer and the first weights are among them. `--first 0` begins with the profile's own seeds, `--first 6` adds
  five more runs to those of the folder.
- The held-out tasks are the same in all runs. `--set evaluate.samples=600` measures on 600 tasks per suite;
  `prepare_data.eval_samples` follows if it is smaller. Without it, a suite that is close to its floor has more tasks
  than the others (`evaluate.samples_at_floor`), and in some runs more than in others.
- The gate has the profile's rules, but compares with no champion (`evaluate.champion` is empty), and a run that
  promotes has a GitOps repository of its own. So no run's decision depends on another run.
- A run that fails or is held back is counted and named, and the next one begins. The same command continues after
  Ctrl-C or a crash: finished runs stay, unfinished and failed ones go on from their last checkpoint. `--show` only
  prints.
- `runs/seeds-tiny/` holds `seeds.md` and `seeds.json` (the result so far), one object store and one MLflow for all
  runs, and the folder of each run, `seeds-1/` and so on, with its `report.html`. `moonflow serve
  runs/seeds-tiny/seeds-1` serves what that run promoted.
- In MLflow, the run `seeds-tiny` has one child per run, `tiny-seeds-1` and so on, with the final scores, and shows
  mean, standard deviation and worst as `eval/<suite>/<ability>/<modality>/mean`, `/sd` and `/worst`. `--keep` leaves
  MLflow running."""
VALUES = """\
A value comes from the command line (`--set joint_pretrain.steps=200`), else from the profile, else from the step's
default. `moonflow run --dry-run` prints all values of a profile; an unknown key is an error that names the nearest one.
`--profile` also takes the path of a TOML file of your own. It has these tables:

- `[run]`: the whole run, see below.
- `[task]`: where steps run, see below; `[task.<step>]` changes that for one step.
- `[<step>]`: the step's parameters, see `components/<step>/README.md`."""


def render() -> str:
    """The README as Markdown."""
    parts = [WRITTEN_BY, "# Pipelines", INTRODUCTION]
    for name, steps in PIPELINES.items():
        links = ", ".join(f"[{step}](../components/{step}/README.md)" for step in steps)
        parts += [f"## Pipeline {name}", f"```\n{(DAGS[name].__doc__ or '').strip()}\n```", f"Steps: {links}."]
    parts += ["## Start from a checkpoint", *start.parts()]
    parts += ["## Sample with SGLang", engines.TEXT]
    parts += ["## Commands", *(part for name, command in _commands() for part in _section(name, command))]
    parts += ["## Several sets of seeds", SEEDS]
    parts += ["## Profiles", table(["profile", "pipeline", "preset", "what it is for"], _profiles()), VALUES]
    parts += ["### `[run]`", _settings(RunSettings), "### `[task]` and `[task.<step>]`", _settings(Placement)]
    return "\n\n".join(parts) + "\n"


def _commands() -> Iterator[tuple[str, Any]]:
    """(name, command) of every command, also of those in a group."""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        yield from ((f"{name} {each}", inner[each]) for each in inner) if inner else [(name, command)]


def _section(name: str, command: Any) -> Iterator[str]:
    yield f"### moonflow {name}"
    yield command.help
    rows = []
    for option in command.params:
        if not option.hidden and option.name != "help":
            shown = ", ".join(f"`{each}`" for each in option.opts)
            if option.param_type_name == "argument":
                shown = f"`{option.name.upper()}`"
            default = "" if option.default in (None, "", False) else f"`{option.default}`"
            variable = f" Or set `{option.envvar}`." if option.envvar else ""
            rows.append([shown, "required" if option.required else default, cell(option.help) + variable])
    yield table(["option", "default", "meaning"], rows)


def _profiles() -> Iterator[list[str]]:
    """A row per shipped profile; its purpose is the first sentence of the file's comment."""
    for path in sorted(PROFILES.glob("*.toml")):
        run = load_profile(path.stem).run
        lines = path.read_text().partition("[run]")[0].splitlines()
        comment = " ".join(line.removeprefix("#").strip() for line in lines)
        shape = run.preset or "the checkpoint's"
        yield [f"[{path.stem}](profiles/{path.name})", run.pipeline, shape, comment.partition(". ")[0].rstrip(".")]


def _settings(schema: type[StepConfig]) -> str:
    rows = []
    for name, field in schema.model_fields.items():
        default = "required" if field.is_required() else f"`{field.default}`" if field.default != "" else "empty"
        rows.append([f"`{name}`", default, cell(field.description), bounds(field)])
    return table(["key", "default", "meaning", "bounds"], rows)
