from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from components.runtime.kfp.image import PIPELINE, TRAIN
from components.runtime.steps import ALL_STEPS, PIPELINES, config_class
from model.boundary.errors import MoonflowError
from pipelines.profile import PROFILES, find_step_of_run, load_profile, require_same_steps, step_of_run
from tests.pipelines.older_run import write_older_run
from tests.pipelines.shipped import SHIPPED


@pytest.mark.parametrize("name", sorted(path.stem for path in PROFILES.glob("*.toml")))
def test_shipped_profiles_load_and_are_what_they_are_called(name: str) -> None:
    profile = load_profile(name)
    assert profile.run.name == name.replace("_", "-"), "a name in Kubernetes has no _"
    assert tuple(profile.steps) == PIPELINES[profile.run.pipeline]


def test_resolved_profile_loads_to_the_same_profile(tmp_path: Path) -> None:
    profile = load_profile("small", ["joint_pretrain.steps=7", "run.image=example.org/x:1"])
    path = tmp_path / "resolved.toml"
    path.write_text(profile.as_toml())
    again = load_profile(str(path))
    assert (again.run, again.tasks, again.steps) == (profile.run, profile.tasks, profile.steps)
    assert again.steps["joint_pretrain"].model_dump()["steps"] == 7


def test_a_step_of_a_run_is_read_although_others_have_other_parameters_now(tmp_path: Path) -> None:
    profile = load_profile("smoke", ["evaluate.samples=3", "serve.model_name=mine"])
    write_older_run(tmp_path, profile)
    with pytest.raises(MoonflowError, match="kept_successes"):
        load_profile(str(tmp_path / "profile.toml"))
    for step in ("evaluate", "promote", "serve"):
        assert step_of_run(tmp_path, step) == profile.steps[step]
    assert find_step_of_run(tmp_path, "visual_rl") is None
    with pytest.raises(MoonflowError, match=r"profile.toml: pipeline k25 has no step sft_arm; give a run of sft_abl"):
        step_of_run(tmp_path, "sft_arm")
    (tmp_path / "profile.toml").write_text("[evaluate]\nsamples = 0\n")
    with pytest.raises(MoonflowError, match=r"profile.toml: \[evaluate\]: parameter 'samples'"):
        step_of_run(tmp_path, "evaluate")


def test_a_run_goes_on_with_the_steps_that_it_was_begun_with(tmp_path: Path) -> None:
    profile = load_profile("smoke", ["task.parl.pool=big"])
    (tmp_path / "profile.toml").write_text(profile.as_toml())
    require_same_steps(load_profile("smoke", ["joint_rl.iterations=1"]), tmp_path)
    with pytest.raises(
        MoonflowError, match=r"other steps \(without fusion_arm; with .*parl.*\): give another --run-dir"
    ):
        require_same_steps(load_profile("fusion"), tmp_path)
    write_older_run(tmp_path, profile)
    with pytest.raises(MoonflowError, match=r"steps \(without visual_rl, rejection_sft\): give another --run-dir"):
        require_same_steps(profile, tmp_path)


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
        ("joint_pretrain = 3", ["joint_pretrain must be a table"]),
        ("[joint_pretrain\nsteps = 1", ["not valid TOML"]),
        ("[vit_pretrain]\npreset = 'k25'", ["vit_pretrain.preset", "run.preset"]),
        ("[task.parl]\nnodes = 2", ["[task.parl]", "nodes = 2", "trainjob"]),
        ("[task]\nrdma = 8\nlauncher = 'ranks'", ["[task.prepare_data]", "rdma = 8", "trainjob"]),
        ("[task.parl]\nprocesses = 8", ["[task.parl]", "processes = 8", "ranks"]),
        ("[task.finish]\nlauncher = 'trainjob'", ["[task.finish]", "launcher"]),
        ("[task.parl]\nlauncher = 'mpi'", ["[task.parl]", "'launcher'", "'mpi'"]),
        ("[task.parl]\nmemory = '4GB'", ["[task.parl]", "'memory'", "as '4Gi' does", "'4GB'"]),
        ("[run]\nname = 'A name'\npreset = 'tiny'", ["[run]", "'name'", "'A name'"]),
        ("[task.parl]\nqueue = 'Train Queue'", ["[task.parl]", "'queue'", "'Train Queue'"]),
        ("[task]\nparl = 3", ["task.parl must be a table"]),
        ("[task]\ndeadline_hours = inf", ["'deadline_hours'", "finite"]),
        ("[run]\nname = 'mine'\npreset = 'tinny'", ["'preset'", "did you mean tiny"]),
        ("[run]\nname = 'mine'", ["[run]", "'preset' is missing"]),
        ("[run]\nname = 'mine'\npipeline = 'post_train'\npreset = 'tiny'", ["'preset'", "of its checkpoint"]),
        ("[run]\nname = 'mine'\npipeline = 'post_train'\n[mid_train]\nsteps = 3", ["unknown key mid_train"]),
        (
            "[run]\nname = 'mine'\npipeline = 'post_train'\n[import_checkpoint]\nsource = 'hf://name'",
            ["[import_checkpoint]", "'source'", "hf://owner/name"],
        ),
        (f"[run]\nname = '{'n' * 49}'\npreset = 'tiny'", ["'name'", "at most 48"]),
        ("[joint_rl]\nmodalities = 'text,imgae'", ["'modalities'", "did you mean image"]),
        ("[prepare_data]\nsources = 'cats'", ["'sources'", "name=URI"]),
        ("[prepare_data]\nsources = 'photo=/data/cats'", ["'sources'", "built-in family"]),
        ("[prepare_data]\nsources = 'successes=/data/cats'", ["'sources'", "of what visual_rl keeps"]),
        ("[evaluate]\nmargin = 2", ["'margin'"]),
        ("[mid_train]\ncontext_steps = '2,inf'", ["'context_steps'", "growing factors"]),
        ("[mid_train]\ncontext_steps = '2,nan'", ["'context_steps'", "growing factors"]),
        ("[promote]\nmodel_name = 'a/b'", ["'model_name'", "a model's name"]),
        ("[promote]\nenvironment = '../prod'", ["'environment'", "overlays/"]),
        ("[serve]\nalias = 'latest'", ["'alias'", "MLflow keeps"]),
        ("[serve]\nfamily = 'fact_qa'", ["'family'", "one image"]),
        ("[serve]\nfamily = 'digit_strin'", ["'family'", "did you mean digit_string"]),
        ("[serve]\nmodel_name = ''", ["'model_name'"]),
        ("[prepare_data]\nmixture = 'broad'", ["vit_pretrain.mixture", "rejection_sft.mixture", "same value"]),
        ("[promote]\nenvironment = 'dev'", ["promote.environment", "serve.environment", "same value"]),
        ("[promote]\nexpert_precision = 'int4'", ["evaluate.expert_precision", "promote.expert_precision"]),
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


@pytest.mark.parametrize(
    "override", ["joint_pretrain.steps", "steps=3", "run.name.x=3", "prepare_data.sources=cats=/\udce9"]
)
def test_a_wrong_override_says_how_to_write_it(override: str) -> None:
    with pytest.raises(MoonflowError, match="--set"):
        load_profile("tiny", [override])


def test_an_unknown_override_is_refused_and_not_laid_on_the_file_alone() -> None:
    with pytest.raises(MoonflowError, match=r"tiny.toml with --set: .*did you mean 'learning_rate'"):
        load_profile("tiny", ["joint_pretrain.learning_rat=1e-3"])


def test_a_text_may_look_like_a_number() -> None:
    started = load_profile("post_train", ["import_checkpoint.source=hf://a/b", "import_checkpoint.revision=12e5678"])
    assert started.steps["import_checkpoint"].revision == "12e5678"
    profile = load_profile("tiny", ["task.cpu=2", "task.parl.cpu=0.5", "run.name=2024"])
    assert (profile.tasks["evaluate"].cpu, profile.tasks["parl"].cpu, profile.run.name) == ("2", "0.5", "2024")


@pytest.mark.parametrize("step", ALL_STEPS)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_no_parameter_of_any_step_takes_a_number_that_is_not_finite(step: str, value: float) -> None:
    schema = config_class(step)
    for name, field in schema.model_fields.items():
        if field.annotation is float:
            with pytest.raises(MoonflowError, match=f"{step}: parameter '{name}'"):
                schema.parse({name: value}, step)


@pytest.mark.parametrize("step", ALL_STEPS)
def test_a_learning_rate_above_one_is_a_slip_of_the_pen(step: str) -> None:
    schema = config_class(step)
    if "learning_rate" in schema.model_fields:
        for wrong in (0.0, -1e-3, 20.0):
            with pytest.raises(MoonflowError, match="'learning_rate'"):
                schema.parse({"learning_rate": wrong}, step)


@pytest.mark.parametrize("step", ALL_STEPS)
def test_the_defaults_pass_their_own_checks(step: str) -> None:
    schema = config_class(step)
    assert schema.parse(schema().model_dump(), step) == schema()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[run]\nname = 'a'\npreset = 'tiny'\n# M\xfcnchen\n", "line 4 is not UTF-8: save the file as UTF-8"),
        ("[run]\nname = 'a'".encode("utf-16"), "not UTF-8"),
        (b"", "'name'"),
        (b"\x00\x01", "not valid TOML"),
        (b"a = " + b"[" * 100_000, "not valid TOML"),
    ],
)
def test_a_file_that_is_no_profile_is_one_line_that_names_it(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(MoonflowError) as caught:
        load_profile(str(path))
    assert str(path) in str(caught.value) and told in str(caught.value) and "\n" not in str(caught.value)


def test_a_profile_as_windows_editors_save_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes("\ufeff[run]\r\nname = 'mine'\r\npreset = 'tiny'\r\n".encode())
    assert load_profile(str(path)).run.name == "mine"


def test_a_folder_or_an_unreadable_name_in_place_of_a_profile_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(MoonflowError, match="folder.toml cannot be read: Is a directory"):
        load_profile(str(tmp_path / "folder.toml"))
    with pytest.raises(MoonflowError, match="name too long"):
        load_profile("x" * 300)


@pytest.mark.parametrize("text", ["a\nb", 'say "no"', "back\\slash", "\x7f\t", "M\u00fcnchen \U0001f319"])
def test_any_text_survives_the_resolved_profile(tmp_path: Path, text: str) -> None:
    profile = load_profile("tiny")
    profile = replace(profile, run=profile.run.model_copy(update={"image": text}))
    path = tmp_path / "resolved.toml"
    path.write_text(profile.as_toml(), encoding="utf-8")
    assert load_profile(str(path)).run.image == text


@pytest.mark.parametrize("name", SHIPPED)
def test_the_rows_of_a_shipped_profile_divide_among_its_ranks(name: str) -> None:
    load_profile(name).require_parallel()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["task.joint_rl.processes=2"], "joint_rl.ptx_rows = 1 does not divide among the 2 data ranks of"),
        (["task.mid_train.processes=3"], "mid_train.rows = .* does not divide among the 3 data ranks of"),
    ],
)
def test_rows_that_do_not_divide_among_the_ranks_are_refused_before_the_run(changes: list[str], told: str) -> None:
    launched = [f"{change.rpartition('.')[0]}.launcher=ranks" for change in changes]
    profile = load_profile("tiny", [*launched, *changes])
    with pytest.raises(MoonflowError, match=told):
        profile.require_parallel()


def test_rows_matter_only_where_they_are_read() -> None:
    """Without the pre-training loss, RL reads no rows; ranks that share a row are one data rank."""
    ranks = ["task.joint_rl.launcher=ranks", "task.joint_rl.processes=2"]
    load_profile("tiny", [*ranks, "joint_rl.ptx_weight=0"]).require_parallel()
    load_profile("tiny", [*ranks, "task.joint_rl.sequence_parallel=2"]).require_parallel()
