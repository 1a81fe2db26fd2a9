"""What is missing outside of a profile is told before the first step, and nothing is written."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from components.release.gitops import MANIFESTS
from model.boundary.errors import MoonflowError
from model.rl.tools.sandbox import Sandbox
from pipelines.preflight import preflight
from pipelines.profile import load_profile
from pipelines.run import run_locally

OTHER = ["promote.environment=staging", "serve.environment=staging"]


def bare(folder: Path, overlays: tuple[str, ...]) -> str:
    """A bare repository whose main branch has these overlays; none: no commit."""
    made, work = folder / "gitops.git", folder / "work"
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "init.defaultBranch=main"]
    subprocess.run([*git, "init", "--quiet", "--bare", str(made)], check=True)
    if overlays:
        subprocess.run([*git, "init", "--quiet", str(work)], check=True)
        for name in overlays:
            (work / "overlays" / name).mkdir(parents=True)
            (work / "overlays" / name / "kustomization.yaml").write_text("{}")
        for command in (["add", "--all"], ["commit", "--quiet", "-m", "x"], ["push", "--quiet", str(made), "main"]):
            subprocess.run([*git, *command], cwd=work, check=True)
    return str(made)


@pytest.mark.parametrize("overlays", [(), ("local",)])
def test_every_shipped_profile_passes(overlays: tuple[str, ...], tmp_path: Path) -> None:
    preflight(load_profile("tiny"), bare(tmp_path, overlays))
    for name in ("tiny", "base", "smoke", "small", "k25", "fusion"):
        preflight(load_profile(name), str(tmp_path / "not-there-yet.git"))
    assert not (tmp_path / "not-there-yet.git").exists()


@pytest.mark.parametrize("overlays", [None, (), ("local", "dev")])
def test_an_environment_without_an_overlay_is_told_before_the_first_step(
    overlays: tuple[str, ...] | None, tmp_path: Path
) -> None:
    repository = str(tmp_path / "new.git") if overlays is None else bare(tmp_path, overlays)
    known = ", ".join(overlays or sorted(path.name for path in (MANIFESTS / "overlays").iterdir()))
    with pytest.raises(MoonflowError) as caught:
        preflight(load_profile("tiny", OTHER), repository)
    assert "'staging'" in str(caught.value) and ", ".join(sorted(known.split(", "))) in str(caught.value)


def test_a_repository_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "gitops.git").write_text("no repository")
    with pytest.raises(MoonflowError, match="git clone failed"):
        preflight(load_profile("tiny"), str(tmp_path / "gitops.git"))


def test_a_source_that_is_not_there_is_told_before_the_first_step(tmp_path: Path) -> None:
    there, missing = tmp_path / "cats", tmp_path / "dogs"
    there.mkdir()
    sources = f"prepare_data.sources=cats={there}, dogs:2={missing}"
    with pytest.raises(MoonflowError, match=f"dogs names {missing}, and there is no such folder"):
        preflight(load_profile("fusion", [sources]), "")
    preflight(load_profile("fusion", [sources]), "", begun=True)  # prepare_data may have read them
    preflight(load_profile("fusion", [f"prepare_data.sources=cats={there}, far=s3://bucket/far"]), "")
    preflight(load_profile("fusion", [f"prepare_data.sources=cats=file://{there}"]), "")
    for name in ("chat.jsonl", "B.JSONL", "chat.json"):
        (tmp_path / name).write_text("x")
    preflight(load_profile("fusion", [f"prepare_data.sources=a={tmp_path}/chat.jsonl, b={tmp_path}/B.JSONL"]), "")
    with pytest.raises(MoonflowError, match="chat.json, and there is no such folder or .jsonl file"):
        preflight(load_profile("fusion", [f"prepare_data.sources=chat={tmp_path}/chat.json"]), "")


@pytest.mark.parametrize("uri", ["file:///not/there", "~nobody-of-that-name/cats", "c" * 300])
def test_a_source_that_can_be_no_folder_is_one_line(uri: str) -> None:
    with pytest.raises(MoonflowError, match="cats names .*, and there is no such folder"):
        preflight(load_profile("fusion", [f"prepare_data.sources=cats={uri}"]), "")


def test_a_checkpoint_to_start_from_that_is_not_there_is_told_before_the_first_step(tmp_path: Path) -> None:
    def check(source: str, begun: bool = False) -> None:
        preflight(
            load_profile("post_train", [f"import_checkpoint.source={source}"]), str(tmp_path / "g.git"), begun=begun
        )

    with pytest.raises(MoonflowError, match="import_checkpoint.source is empty: .*--set import_checkpoint.source="):
        check("")
    with pytest.raises(MoonflowError, match="neither a folder nor a run's"):
        check(f"{tmp_path}/nowhere")
    for impossible in ("~nobody-of-that-name/x", "c" * 300, f"{tmp_path}/{'c' * 300}/mid_train"):
        with pytest.raises(MoonflowError, match="neither a folder nor a run's"):
            check(impossible)
    check(f"{tmp_path}/nowhere", begun=True)  # import_checkpoint may have read it
    run = tmp_path / "runs" / "base"
    run.mkdir(parents=True)
    for name in ("profile.toml", "arguments.json"):
        (run / name).touch()
    with pytest.raises(MoonflowError, match="which holds no checkpoint: name a folder with config.json"):
        check(str(tmp_path))
    stored = tmp_path / "store" / "base" / "mid_train" / "0"
    stored.mkdir(parents=True)
    (stored / "manifest.json").touch()
    (tmp_path / "config.json").touch()
    for source in (
        str(tmp_path),
        str(stored),
        str(stored.parents[1]),
        str(run),
        f"{run}/mid_train",
        f"{run}/mid_train/3",
        "s3://bucket/base",
        "hf://a/b",
    ):
        check(source)


def test_a_machine_that_would_refuse_programs_is_told_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Sandbox) -> None:
        raise MoonflowError("no program is run")

    monkeypatch.setattr(Sandbox, "isolation", property(refused))
    with pytest.raises(MoonflowError, match="no program is run"):
        preflight(load_profile("fusion"), "")
    preflight(load_profile("fusion", ["fusion_arm.sandbox=unsafe"]), "")


def test_a_run_that_cannot_be_finished_begins_nothing(tmp_path: Path) -> None:
    with pytest.raises(MoonflowError, match="no overlay 'staging'"):
        run_locally(load_profile("smoke", OTHER), tmp_path / "run", keep=False, console=Console())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "setting",
    [
        *(f"{step}.tasks=nowhere:Stars=0.1" for step in ("visual_rl", "joint_rl", "parl")),
        "evaluate.tasks=nowhere:Stars",
    ],
)
def test_a_task_that_is_not_there_is_told_before_the_first_step(setting: str, tmp_path: Path) -> None:
    with pytest.raises(MoonflowError, match="there is no module nowhere: install its package"):
        preflight(load_profile("tiny", [setting]), bare(tmp_path, ()))
