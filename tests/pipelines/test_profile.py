from __future__ import annotations

from pathlib import Path

import pytest

from components.runtime.image import PIPELINE, TRAIN
from components.steps import PIPELINES
from model.errors import MoonflowError
from pipelines.profile import PROFILES, load_profile


@pytest.mark.parametrize("name", sorted(path.stem for path in PROFILES.glob("*.toml")))
def test_shipped_profiles_load_and_are_what_they_are_called(name: str) -> None:
    profile = load_profile(name)
    assert profile.run.name == name
    assert tuple(profile.steps) == PIPELINES[profile.run.pipeline]


def test_resolved_profile_loads_to_the_same_profile(tmp_path: Path) -> None:
    profile = load_profile("small", ["joint_pretrain.steps=7", "run.image=example.org/x:1"])
    path = tmp_path / "resolved.toml"
    path.write_text(profile.as_toml())
    again = load_profile(str(path))
    assert (again.run, again.tasks, again.steps) == (profile.run, profile.tasks, profile.steps)
    assert again.steps["joint_pretrain"].model_dump()["steps"] == 7


def test_task_table_is_shared_and_overridden_by_step() -> None:
    tasks = load_profile("k25").tasks
    assert tasks["vit_pretrain"].accelerators == tasks["joint_pretrain"].accelerators == 8
    assert tasks["promote"].accelerators == 0
    assert (tasks["promote"].pool, tasks["finish"].pool) == ("cpu", "cpu")
    assert load_profile("small", ["task.parl.pool=big"]).tasks["parl"].pool == "big"


def test_the_default_image_is_the_components_own() -> None:
    profile = load_profile("tiny", ["task.parl.accelerators=1"])
    assert profile.placement("evaluate").image == profile.run.image == PIPELINE
    assert profile.placement("parl").image == TRAIN
    own = load_profile("tiny", ["task.parl.accelerators=1", "task.parl.image=example.org/parl:1"])
    assert own.placement("parl").image == "example.org/parl:1"


@pytest.mark.parametrize(("name", "environment"), [("tiny", "local"), ("small", "dev"), ("k25", "prod")])
def test_a_profile_promotes_to_the_overlay_of_its_size(name: str, environment: str) -> None:
    steps = load_profile(name).steps
    for step in ("promote", "serve"):
        assert steps[step].model_dump()["environment"] == environment


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[join_pretrain]\nsteps = 1", ["join_pretrain", "did you mean joint_pretrain"]),
        ("[joint_pretrain]\nstep = 1", ["[joint_pretrain]", "'step'", "did you mean 'steps'"]),
        ("[run]\nnaem = 'x'", ["[run]", "'naem'", "did you mean 'name'"]),
        ("[task]\nmemroy = '4Gi'", ["memroy", "did you mean memory"]),
        ("[task.parl]\ncpus = '4'", ["[task.parl]", "'cpus'", "did you mean 'cpu'"]),
        ("[joint_pretrain]\nsteps = 'many'", ["[joint_pretrain]", "'steps'", "'many'"]),
        ("[joint_pretrain]\nsteps = 0", ["[joint_pretrain]", "'steps'"]),
        ("joint_pretrain = 3", ["joint_pretrain is a table"]),
        ("[joint_pretrain\nsteps = 1", ["not valid TOML"]),
        ("[vit_pretrain]\npreset = 'k25'", ["vit_pretrain.preset", "run.preset"]),
        ("[task.parl]\nnodes = 2", ["[task.parl]", "nodes = 2", "trainjob"]),
        ("[task]\nrdma = 8\nlauncher = 'ranks'", ["[task.prepare_data]", "rdma = 8", "trainjob"]),
        ("[task.parl]\nprocesses = 8", ["[task.parl]", "processes = 8", "ranks"]),
        ("[task.finish]\nlauncher = 'trainjob'", ["[task.finish]", "launcher"]),
        ("[task.parl]\nlauncher = 'mpi'", ["[task.parl]", "'launcher'", "'mpi'"]),
        ("[task.parl]\nmemory = '4GB'", ["[task.parl]", "'memory'", "'4GB'"]),
        ("[task.parl]\nqueue = 'Train Queue'", ["[task.parl]", "'queue'", "'Train Queue'"]),
    ],
)
def test_a_wrong_key_or_value_is_one_line_with_file_key_and_nearest_key(
    tmp_path: Path, text: str, names: list[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text if "[run]" in text else f"{text}\n[run]\nname = 'mine'\npreset = 'tiny'\n")
    with pytest.raises(MoonflowError) as caught:
        load_profile(str(path))
    line = str(caught.value)
    assert "\n" not in line
    for part in [str(path), *names]:
        assert part in line


def test_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(MoonflowError, match="did you mean tiny"):
        load_profile("tinny")


@pytest.mark.parametrize("override", ["joint_pretrain.steps", "steps=3", "run.name.x=3"])
def test_a_wrong_override_says_how_to_write_it(override: str) -> None:
    with pytest.raises(MoonflowError, match="--set"):
        load_profile("tiny", [override])


def test_an_unknown_override_is_refused() -> None:
    with pytest.raises(MoonflowError, match="did you mean 'learning_rate'"):
        load_profile("tiny", ["joint_pretrain.learning_rat=1e-3"])
