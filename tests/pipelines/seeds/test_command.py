"""``moonflow seeds`` around its runs: which it asks for, goes on with or refuses. Real runs are in test_seeds_run."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from model.boundary.errors import MoonflowError
from pipelines.cli import main
from pipelines.profile import load_profile
from pipelines.run import lay_out, run_locally, run_lock
from pipelines.run_folder import made_by_a_run, resume_command, services_folder
from pipelines.seeds.command import Member, numbers, run_seeds
from pipelines.seeds.results import SeedRun, save
from pipelines.seeds.rule import run_id, seeds_of
from tests.pipelines.older_run import write_older_run

SCORE = {
    "suite": "photo", "ability": "knowledge", "modality": "image", "value": 0.5, "stderr": 0.1, "n": 4, "chance": 0.2,
}  # fmt: skip


Finish = Callable[..., None]


@pytest.fixture(scope="module")
def finish(tmp_path_factory: pytest.TempPathFactory) -> Finish:
    """Writes a run's folder as it is when the run has ended."""
    made: dict[tuple[object, ...], Path] = {}  # to be copied: the pipeline of a run takes about a second to compile

    def write(folder: Path, number: int, state: str = "promoted", *overrides: str) -> None:
        profile = load_profile("smoke", overrides)
        member = Member.of(profile, folder, number)
        if (number, *overrides) not in made:
            laid_out = made[(number, *overrides)] = tmp_path_factory.mktemp("run") / "seeds"
            lay_out(member.profile, laid_out, run_id(profile, number))
        shutil.copytree(made[(number, *overrides)], member.folder)
        save(member.folder, SeedRun(number, state, seeds_of(member.profile), ["why"], 60.0 + number, [SCORE]))

    return write


def again(folder: Path, count: int | None = None, first: int | None = None, *overrides: str) -> dict:
    console = Console(file=sys.stdout)
    return run_seeds(load_profile("smoke", overrides), folder, count, first, keep=False, console=console)


def seeds(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The status of the command in this process."""
    monkeypatch.setattr(sys, "argv", ["moonflow", "seeds", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.slow
def test_when_all_is_done_nothing_starts_and_the_result_is_printed_again(
    tmp_path: Path, finish: Finish, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "all"
    for number, state in ((1, "promoted"), (2, "held")):
        finish(folder, number, state)
    assert seeds(monkeypatch, "--profile", "smoke", "--seeds", "2", "--run-dir", str(folder), "--json") == 0
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    assert "promoted 1 of 2" in printed and "held back by the gate: seeds 2 (why)" in printed
    assert found == json.loads((folder / "seeds.json").read_text())
    assert (found["promoted"], found["held"], found["seconds"]["mean"]) == ([1], [2], 61.5)
    assert "| photo | 0.50 | 0.50 |" in (folder / "seeds.md").read_text()
    assert not (folder / "store").exists(), "no service was started"

    assert seeds(monkeypatch, "--show", "--run-dir", str(folder), "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found


def test_the_folder_remembers_which_runs_were_asked_for(tmp_path: Path, finish: Finish) -> None:
    assert numbers(tmp_path, None, None) == [1, 2, 3]
    assert numbers(tmp_path, 2, 0) == [0, 1]
    for number in (4, 7):
        finish(tmp_path, number)
    assert numbers(tmp_path, None, None) == [4, 7], "what a killed first call has laid out"
    assert again(tmp_path)["promoted"] == [4, 7]
    assert numbers(tmp_path, None, None) == [4, 7] and numbers(tmp_path, None, 9) == [9, 10, 11]


def test_runs_that_are_not_asked_for_stay_in_the_table(tmp_path: Path, finish: Finish) -> None:
    for number in (1, 2, 3):
        finish(tmp_path, number)
    again(tmp_path)
    assert again(tmp_path, 1, 2)["promoted"] == [1, 2, 3]


def test_other_parameters_are_refused_before_anything_starts_and_nothing_is_lost(
    tmp_path: Path, finish: Finish
) -> None:
    finish(tmp_path, 1)
    found = again(tmp_path)
    with pytest.raises(MoonflowError, match=r"seeds-1 was begun with mid_train\.steps = 3, not 4"):
        again(tmp_path, 2, 1, "mid_train.steps=4")
    assert again(tmp_path) == found


def test_runs_of_an_earlier_version_are_refused_with_what_to_do(tmp_path: Path) -> None:
    member = Member.of(load_profile("smoke"), tmp_path, 1)
    write_older_run(member.folder, member.profile)
    with pytest.raises(
        MoonflowError, match=r"seeds-1 was begun with .*\(without visual_rl, rejection_sft\): give anoth"
    ):
        again(tmp_path)
    text = member.profile.as_toml().replace("[joint_rl]\n", "[joint_rl]\nkept_successes = 8\n")
    (member.folder / "profile.toml").write_text(text)
    with pytest.raises(MoonflowError, match=r"earlier version .*kept_successes.*\): give another --run-dir"):
        again(tmp_path)


def test_a_failed_run_and_one_with_another_gate_are_not_done(tmp_path: Path, finish: Finish) -> None:
    for number, state in ((1, "promoted"), (2, "held"), (3, "failed")):
        finish(tmp_path, number, state)

    def done(*overrides: str) -> list[bool]:
        profile = load_profile("smoke", overrides)
        return [Member.of(profile, tmp_path, number).result.complete for number in (1, 2, 3, 4)]

    assert done() == [True, True, False, False]
    assert done("joint_pretrain.keep_last=5") == [True, True, False, False]
    assert done("evaluate.floors=photo=0.5") == [False] * 4


def test_a_table_never_mixes_the_decisions_of_two_gates(tmp_path: Path, finish: Finish) -> None:
    finish(tmp_path, 1)
    finish(tmp_path, 2, "held", "evaluate.floors=photo=0.9")
    again(tmp_path, 1, 1)
    found = again(tmp_path, 1, 1)
    assert (found["promoted"], found["held"], found["unfinished"]) == ([1], [], [2])


def test_one_folder_is_either_a_run_or_holds_runs(tmp_path: Path, finish: Finish) -> None:
    profile = load_profile("smoke")
    lay_out(profile, tmp_path / "run", "smoke")
    with pytest.raises(MoonflowError, match="is the folder of a run: give another --run-dir"):
        again(tmp_path / "run")

    finish(tmp_path / "all", 1)
    again(tmp_path / "all")
    for folder in (tmp_path / "all", tmp_path / "all" / "seeds-1"):
        with pytest.raises(
            MoonflowError, match=r"belongs to moonflow seeds: go on with moonflow seeds --profile \S+/all"
        ):
            run_locally(profile, folder, keep=False, console=Console())


def test_a_member_is_continued_and_served_from_the_folder_that_has_its_store(tmp_path: Path, finish: Finish) -> None:
    finish(tmp_path, 1)
    again(tmp_path)
    member = made_by_a_run(tmp_path / "seeds-1")
    assert services_folder(member) == tmp_path and services_folder(tmp_path) == tmp_path
    expected = f"moonflow seeds --profile {tmp_path}/seeds.toml --run-dir {tmp_path} --keep"
    assert resume_command(member, "--keep") == resume_command(tmp_path, "--keep") == expected
    assert load_profile(str(tmp_path / "seeds.toml")).as_toml() == load_profile("smoke").as_toml()


def test_two_calls_for_one_folder_do_not_meet(tmp_path: Path, finish: Finish) -> None:
    finish(tmp_path, 1)
    with run_lock(tmp_path), pytest.raises(MoonflowError, match="in use by another moonflow run"):
        again(tmp_path)


def test_a_profile_that_cannot_run_here_begins_nothing(tmp_path: Path) -> None:
    for name, overrides, told in (
        ("small", (), "need a cluster"),
        ("fusion", (), "evaluate one final model; fusion_ablation .*: set run.seeds"),
        ("post_train", (), "import_checkpoint.source is empty"),
        ("smoke", ("promote.environment=staging", "serve.environment=staging"), "no overlay 'staging'"),
    ):
        with pytest.raises(MoonflowError, match=told):
            run_seeds(load_profile(name, overrides), tmp_path / "all", 2, 1, keep=False, console=Console())
    assert not (tmp_path / "all").exists()


def test_dry_run_prints_the_seeds_of_every_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ("--profile", "smoke", "--seeds", "2", "--first", "0", "--dry-run")
    assert seeds(monkeypatch, *arguments) == 0
    own, moved = capsys.readouterr().out.splitlines()
    assert own.startswith("runs/seeds-smoke/seeds-0: prepare_data 0, vit_pretrain 0, joint_pretrain 1,")
    assert moved.startswith("runs/seeds-smoke/seeds-1: prepare_data 1000, vit_pretrain 1000, joint_pretrain 1001,")
    assert list(tmp_path.iterdir()) == []
